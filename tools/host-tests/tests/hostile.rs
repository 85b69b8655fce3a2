//! Frames made to break a host: from the underlay and from a container, by a table whose every row says how it must end, and
//! by the fuzzer. Beside our host stands the kernel's own VXLAN device, which nobody here wrote. Needs root.
#![expect(clippy::unwrap_used, reason = "helpers of tests: a panic is the report")]
mod hostile {
    mod checksums;
    mod fuzzed;
    mod outwards;
    mod table;

    use overlay_fuzz::Ingress;
    use overlay_host_tests::overlay;

    /// Every way to decapsulate; each table below holds for each of them.
    const INGRESSES: &[Ingress] = &[Ingress::Tc, Ingress::Xdp, Ingress::XdpStrip];
}
