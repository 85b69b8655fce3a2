//! Why there is no tunnel device.
use ipnet::Ipv4Net;

use crate::host::netlink::NetlinkError;

/// Why there is no device.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// Another VXLAN device has the port.
    #[error(
        "udp port {port} belongs to vxlan device {holder} (vni {vni}): a host has one owner per port. If flannel made \
         it, `overlay adopt-flannel` moves the host over under traffic; else stop what manages it, run `ip link delete \
         {holder}`, and start the agent again"
    )]
    PortTaken {
        /// The port, in the machine's order.
        port: u16,
        /// Name of the device that has it.
        holder: String,
        /// That device's VNI.
        vni: u32,
    },
    /// Another network of ours has the VNI on this port.
    #[error(
        "vni {vni} on udp port {port} belongs to {holder}: networks that share a port need different VNIs (`Backend.VNI` \
         in the network's config)"
    )]
    VniTaken {
        /// The VNI.
        vni: u32,
        /// The port, in the machine's order.
        port: u16,
        /// Name of the device that has it, or of all that may.
        holder: String,
    },
    /// A socket, not a device, has the port.
    #[error("udp port {port} is bound by a process: find it with `ss -ulnp 'sport = :{port}'` and stop it")]
    PortBound {
        /// The port, in the machine's order.
        port: u16,
    },
    /// The name is taken by something else.
    #[error(
        "interface {name} exists and is a {kind}, not the {wanted} that the network needs: rename or delete it, or choose \
         another --device"
    )]
    NameTaken {
        /// The name.
        name: String,
        /// What has it.
        kind: String,
        /// What should.
        wanted: &'static str,
    },
    /// The kernel gives no TUN.
    #[error("make tun device {name}: {detail}")]
    NoTun {
        /// The name.
        name: String,
        /// What it said, and what to do.
        detail: String,
    },
    /// Somebody else routes the overlay.
    #[error(
        "{network} is already routed through interface {interface}: remove that route first \
         (`ip route delete {network} dev {interface}`)"
    )]
    RouteTaken {
        /// The destination.
        network: Ipv4Net,
        /// Name of the interface.
        interface: String,
    },
    /// The kernel refuses.
    #[error(transparent)]
    Kernel(#[from] NetlinkError),
}
