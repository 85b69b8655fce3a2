//! How the kernel programs are linked, wherever they are built.
use std::env;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if env::var("CARGO_CFG_TARGET_ARCH").as_deref() == Ok("bpf") {
        // Fills and copies of known length become stores. By default they call a function that goes byte by byte: 52 times
        // for a bpf_fib_lookup. Not for the benchmark's sender, whose template would go by way of the stack, and not fit.
        for program in ["overlay", "overlay-floor"] {
            println!("cargo:rustc-link-arg-bin={program}=--disable-expand-memcpy-in-order");
        }
    }
}
