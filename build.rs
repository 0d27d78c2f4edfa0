//! Names the shared library as programs are to find it at run time. Functions of the C interface are only ever appended, so
//! that the number stays 0.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let os = std::env::var("CARGO_CFG_TARGET_OS").unwrap_or_default();
    let windows = std::env::var("CARGO_CFG_TARGET_FAMILY").is_ok_and(|family| family.contains("windows"));
    if os == "macos" {
        println!("cargo:rustc-cdylib-link-arg=-Wl,-install_name,@rpath/libmdm.0.dylib");
    } else if !windows && os != "ios" {
        // Not `rustc-cdylib-link-arg`, which would also name the shared libraries that contain this one.
        println!("cargo:rustc-link-arg=-Wl,-soname,libmdm.so.0");
    }
}
