//! Empty on purpose: aya-build needs a library target to depend on, so that cargo notices changes. The programs are in `main.rs`.
#![no_std]
