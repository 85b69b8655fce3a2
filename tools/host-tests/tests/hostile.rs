//! Frames made to break a host, from the underlay and from a container: each row of a table says how a frame must end,
//! and the fuzzer makes further ones. The other host has the kernel's own VXLAN device. These tests need root.
#![expect(clippy::unwrap_used, reason = "helpers of tests: a panic is the report")]
mod hostile {
    mod checksums;
    mod fuzzed;
    mod outwards;
    mod pretended;
    mod table;
    mod unencapsulated;

    use overlay_fuzz::{FastPath, Ingress, Setup};
    use overlay_host_tests::overlay;

    /// Each table below holds for every ingress mode with a fast path that carries what it can, and for one with a fast path that
    /// carries only what the stack has accepted. One is enough for that, because all of them ask about a connection by the same code,
    /// and TC counts what XDP leaves to the stack.
    const SETUPS: &[Setup] = &[
        fast(Ingress::Tc),
        fast(Ingress::Xdp),
        fast(Ingress::XdpStrip),
        Setup { ingress: Ingress::Tc, fast_path: FastPath::Established },
    ];

    const fn fast(ingress: Ingress) -> Setup {
        Setup { ingress, fast_path: FastPath::On }
    }
}
