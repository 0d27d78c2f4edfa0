//! What shaders are written in beyond WGSL: lines that import shared files, and lines that are repeated.
//!
//! `#import NAME` stands for a file in `shaders/shared`. What is between `#for i in COUNT` and its `#end` is repeated with `{i}` as 0,
//! 1, .. COUNT - 1, where COUNT is a number or one of the shader's constants. Drivers need not unroll loops, and those that do not
//! keep what a loop's variable indexes in memory instead of registers: so what has to be in registers is written out by name.

/// Adds what `text` stands for to `source`. A name that is not there is left for the compiler to complain about; the tests compile
/// everything.
pub(super) fn expand(text: &str, constants: &[(&str, u32)], shared: &[(&str, &str)], source: &mut String) {
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if let Some((variable, count)) = line.strip_prefix("#for ").and_then(|head| head.split_once(" in ")) {
            let body = body(&mut lines);
            let known = constants.iter().find(|(name, _)| *name == count).map(|(_, value)| *value);
            for index in 0..count.parse().ok().or(known).unwrap_or(0) {
                let own = body.replace(&format!("{{{variable}}}"), &index.to_string());
                expand(&own, constants, shared, source);
            }
            continue;
        }
        match line.strip_prefix("#import ").map(str::trim) {
            Some(name) => match shared.iter().find(|(known, _)| *known == name) {
                Some((_, text)) => expand(text, constants, shared, source),
                None => *source += line,
            },
            None => *source += line,
        }
        source.push('\n');
    }
}

/// The lines up to the `#end` that belongs to the `#for` before them.
fn body<'a>(lines: &mut impl Iterator<Item = &'a str>) -> String {
    let mut body = String::new();
    let mut depth = 1;
    for line in lines {
        match line {
            "#end" => depth -= 1,
            _ if line.starts_with("#for ") => depth += 1,
            _ => {}
        }
        if depth == 0 {
            break;
        }
        body += line;
        body.push('\n');
    }
    body
}

#[cfg(test)]
mod tests {
    use super::expand;

    #[test]
    fn lines_are_repeated_and_imported() {
        let shared = [("one", "#for j in N\nvalue_{i}_{j}\n#end"), ("nothing", "")];
        let mut source = String::new();
        expand(
            "a\n#for i in 2\nb {i}\n#for k in N\nc {i}{k}\n#end\n#end\n#import one\nd",
            &[("N", 2)],
            &shared,
            &mut source,
        );
        assert_eq!(source, "a\nb 0\nc 00\nc 01\nb 1\nc 10\nc 11\nvalue_{i}_0\nvalue_{i}_1\n\nd\n");
    }
}
