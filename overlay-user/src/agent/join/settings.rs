//! The constants that the programs are loaded with on a host that has joined.
use overlay_common::{
    ENCAPSULATION_UDP, SETTING_DIRECT, SETTING_OUTER_DF, SETTING_PART, SETTING_STRICT_PEERS, Settings,
};

use super::Joined;
use crate::{
    agent::options::Options,
    model::addr::{OtherFamily, gateway, ipv4, ipv4_net},
};

impl Joined {
    pub(super) fn settings(&self, options: &Options, device: u32) -> Result<Settings, OtherFamily> {
        let subnet = ipv4_net(self.local_lease.lease.subnet)?;
        let network = ipv4_net(self.network.plan.network)?;
        let (leasable_first, leasable_last) = self.network.plan.leasable();
        let flags = [
            (options.outer_df, SETTING_OUTER_DF),
            (options.strict_peers, SETTING_STRICT_PEERS),
            (self.backend.is_direct(), SETTING_DIRECT),
            (!self.network.plan.is_whole(), SETTING_PART),
        ];
        // RFC 7348 section 5 recommends source ports of "the range 49152-65535 ... [RFC6335]". flannel's udp backend sends from
        // its own port, but takes datagrams from any, so that the hash of the flow spreads packets over the receiver's queues
        // in that backend, too. With DF, however, routers answer by ICMP, and the kernel learns from an answer only if it finds
        // a socket by this source port. For VXLAN it looks for the tunnel's own socket (encap_err_lookup). The agent's socket
        // in UDP mode is an ordinary one, which is found only if packets are sent from its port.
        let is_told_by_port = options.outer_df && self.backend.encapsulation() == ENCAPSULATION_UDP;
        let (port_min, port_count) = if is_told_by_port { (self.backend.port(), 1) } else { (49152, 16384) };
        Ok(Settings {
            network: network.network().octets(),
            network_mask: network.netmask().octets(),
            subnet: subnet.network().octets(),
            subnet_mask: subnet.netmask().octets(),
            local: ipv4(self.underlay.address)?.octets(),
            underlay: self.underlay.ifindex,
            device,
            vni: self.backend.vni().unwrap_or_default(),
            port: self.backend.port().to_be_bytes(),
            vtep_mac: self.spec.kind.mac().map_or([0; 6], |mac| mac.0),
            flags: flags.iter().filter(|(is_set, _)| *is_set).map(|(_, flag)| flag).sum(),
            port_min,
            port_count,
            // subnet.env tells Docker and CNI to give the bridge the subnet's first address.
            gateway: ipv4(gateway(subnet.into()))?.octets(),
            underlay_mac: self.underlay.mac.map_or([0; 6], |mac| mac.0),
            encapsulation: self.backend.encapsulation(),
            host_bits: subnet.max_prefix_len() - subnet.prefix_len(),
            leasable_first: ipv4(leasable_first)?.into(),
            leasable_last: ipv4(leasable_last)?.into(),
        })
    }
}
