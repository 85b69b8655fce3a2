//! Addresses and prefixes of whichever family. They are named by `IpAddr` and `IpNet` everywhere, so that one function
//! serves all families; what is of one family alone (a wire format, a map) converts at its edge.
use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv4Net};

/// An address of a family that something has no form for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} is no IPv4 address, and no other family is supported yet")]
pub struct OtherFamily(IpAddr);

/// An address as one of IPv4, for what is of IPv4 alone.
pub fn ipv4(address: IpAddr) -> Result<Ipv4Addr, OtherFamily> {
    match address {
        IpAddr::V4(address) => Ok(address),
        IpAddr::V6(_) => Err(OtherFamily(address)),
    }
}

/// A prefix as one of IPv4, for what is of IPv4 alone.
pub fn ipv4_net(net: IpNet) -> Result<Ipv4Net, OtherFamily> {
    match net {
        IpNet::V4(net) => Ok(net),
        IpNet::V6(_) => Err(OtherFamily(net.addr())),
    }
}

/// How many addresses a prefix of this length has, in the family of `like`. Zero stands for all of IPv6.
pub fn size(like: IpAddr, prefix_len: u8) -> u128 {
    let width = IpNet::from(like).max_prefix_len();
    1_u128.checked_shl(u32::from(width - prefix_len.min(width))).unwrap_or(0)
}

/// The place of an address among all of its family.
pub fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u32::from(address).into(),
        IpAddr::V6(address) => address.into(),
    }
}

/// The address that is `steps` after this one, which there must be.
pub fn after(address: IpAddr, steps: u128) -> IpAddr {
    let number = number(address).wrapping_add(steps);
    match address {
        IpAddr::V4(_) => Ipv4Addr::from(number as u32).into(),
        IpAddr::V6(_) => std::net::Ipv6Addr::from(number).into(),
    }
}

/// The first address behind the base of a prefix: what subnet.env gives to the bridge, which is the containers' gateway.
pub fn gateway(subnet: IpNet) -> IpAddr {
    after(subnet.network(), 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn either_family_counts_alike() {
        assert_eq!(after(ip("10.244.0.255"), 1), ip("10.244.1.0"));
        assert_eq!(after(ip("fd00::ffff"), 1), ip("fd00::1:0"));
        assert_eq!(gateway("10.244.7.9/24".parse().unwrap()), ip("10.244.7.1"));
        assert_eq!(gateway("fd00:7::9/64".parse().unwrap()), ip("fd00:7::1"));
        assert_eq!((size(ip("10.0.0.0"), 24), size(ip("10.0.0.0"), 32)), (256, 1));
        assert_eq!((size(ip("fd00::"), 64), size(ip("fd00::"), 128)), (1 << 64, 1));
        assert_eq!(number(ip("0.0.1.0")), number(ip("::100")));
    }

    #[test]
    fn what_is_of_ipv4_alone_says_so() {
        assert_eq!(ipv4(ip("10.0.0.1")), Ok(Ipv4Addr::new(10, 0, 0, 1)));
        let refused = ipv4_net("fd00::/64".parse().unwrap()).unwrap_err().to_string();
        assert!(refused.starts_with("fd00:: is no IPv4 address"), "{refused}");
    }
}
