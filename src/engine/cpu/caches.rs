//! Sizes of the processor's caches, by which work is divided.

use std::sync::OnceLock;

/// Bytes of cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caches {
    /// Second level, of each core.
    pub second: usize,
    /// Last level, of all cores together.
    pub last: usize,
}

/// What is assumed where the processor does not say.
const USUAL: Caches = Caches { second: 1 << 20, last: 8 << 20 };

impl Caches {
    /// Those of this machine.
    pub fn of_this_machine() -> Self {
        static KNOWN: OnceLock<Caches> = OnceLock::new();
        *KNOWN.get_or_init(|| detect().unwrap_or(USUAL))
    }
}

/// What the kernel says of the first processor.
#[cfg(any(target_os = "linux", target_os = "android"))]
fn detect() -> Option<Caches> {
    let mut found = USUAL;
    let mut any = false;
    for index in 0..8 {
        let folder = format!("/sys/devices/system/cpu/cpu0/cache/index{index}");
        let read = |name: &str| std::fs::read_to_string(format!("{folder}/{name}"));
        let (Ok(level), Ok(size), Ok(kind)) = (read("level"), read("size"), read("type")) else { break };
        let bytes = bytes(size.trim())?;
        match level.trim() {
            "2" if kind.trim() != "Instruction" => {
                found = Caches { second: bytes, last: found.last.max(bytes) }
            }
            "3" => found.last = bytes,
            _ => continue,
        }
        any = true;
    }
    any.then_some(found)
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn detect() -> Option<Caches> {
    None
}

/// A size such as `1024K`.
#[cfg(any(test, target_os = "linux", target_os = "android"))]
fn bytes(text: &str) -> Option<usize> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let unit = match &text[digits.len()..] {
        "" => 1,
        "K" => 1 << 10,
        "M" => 1 << 20,
        "G" => 1 << 30,
        _ => return None,
    };
    // Neither nonsense nor nothing.
    digits.parse::<usize>().ok()?.checked_mul(unit).filter(|bytes| (1 << 15..1 << 34).contains(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        assert_eq!(bytes("1024K"), Some(1 << 20));
        assert_eq!(bytes("32M"), Some(32 << 20));
        assert_eq!(bytes("65536"), Some(1 << 16));
        for bad in ["", "K", "0K", "12X", "99999999999999999999G"] {
            assert_eq!(bytes(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn this_machine_has_caches() {
        let caches = Caches::of_this_machine();
        assert!(caches.second >= 1 << 15 && caches.last >= caches.second, "{caches:?}");
    }
}
