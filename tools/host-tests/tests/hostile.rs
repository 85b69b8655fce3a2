//! Frames made to break a host, from the underlay and from a container: each row of a table says how a frame must end,
//! and the fuzzer makes further ones. The other host has the kernel's own VXLAN device. These tests need root.
#![expect(clippy::unwrap_used, reason = "helpers of tests: a panic is the report")]
mod hostile {
    mod checksums;
    mod fuzzed;
    mod outwards;
    mod table;
    mod unencapsulated;

    use overlay_fuzz::Ingress;
    use overlay_host_tests::overlay;

    /// Every ingress mode. Each table below holds for each of them.
    const INGRESSES: &[Ingress] = &[Ingress::Tc, Ingress::Xdp, Ingress::XdpStrip];
}
