//! Where the fields of each header are, counted in bytes from the header's first, and the numbers that may be in them.

/// Ethernet without a VLAN tag.
pub mod ethernet {
    /// Where the fields stand.
    pub mod offset {
        /// Destination address, 6 bytes.
        pub const DESTINATION: usize = 0;
        /// Source address, 6 bytes.
        pub const SOURCE: usize = 6;
        /// EtherType, 2 bytes.
        pub const ETHERTYPE: usize = 12;
    }
}

/// IPv4 (RFC 791 section 3.1).
pub mod ipv4 {
    /// First byte of a header without options: version 4, and a length of five 32-bit words.
    pub const WITHOUT_OPTIONS: u8 = 0x45;
    /// The flag "don't fragment" in the 16 bits at [`offset::FRAGMENT`].
    pub const DONT_FRAGMENT: u16 = 0x4000;
    /// The flag "more fragments" in the same 16 bits.
    pub const MORE_FRAGMENTS: u16 = 0x2000;
    /// The fragment's place in its datagram, in the same 16 bits.
    pub const FRAGMENT_OFFSET: u16 = 0x1fff;

    /// Where the fields stand.
    pub mod offset {
        /// Version in the upper half of the byte, header length in 32-bit words in the lower half.
        pub const VERSION: usize = 0;
        /// Type of service, whose two lower bits are the ECN field (RFC 3168 section 5).
        pub const TOS: usize = 1;
        /// Length of the whole packet, 2 bytes.
        pub const LENGTH: usize = 2;
        /// Identification, 2 bytes.
        pub const IDENTIFICATION: usize = 4;
        /// Flags and fragment offset, 2 bytes.
        pub const FRAGMENT: usize = 6;
        /// Time to live.
        pub const TTL: usize = 8;
        /// Protocol number of what follows.
        pub const PROTOCOL: usize = 9;
        /// Header checksum, 2 bytes.
        pub const CHECKSUM: usize = 10;
        /// Source address, 4 bytes.
        pub const SOURCE: usize = 12;
        /// Destination address, 4 bytes.
        pub const DESTINATION: usize = 16;
    }
}

/// IPv6 (RFC 8200 section 3).
pub mod ipv6 {
    /// The version, in the upper half of the first byte.
    pub const VERSION: u8 = 6;

    /// Where the fields stand.
    pub mod offset {
        /// Version, traffic class and flow label, 4 bytes.
        pub const VERSION: usize = 0;
        /// Length of what follows the header, 2 bytes.
        pub const PAYLOAD_LENGTH: usize = 4;
        /// Protocol number of what follows.
        pub const NEXT_HEADER: usize = 6;
        /// Hop limit.
        pub const HOP_LIMIT: usize = 7;
        /// Source address, 16 bytes.
        pub const SOURCE: usize = 8;
        /// Destination address, 16 bytes.
        pub const DESTINATION: usize = 24;
    }
}

/// UDP (RFC 768).
pub mod udp {
    /// Where the fields stand.
    pub mod offset {
        /// Source port, 2 bytes.
        pub const SOURCE_PORT: usize = 0;
        /// Destination port, 2 bytes.
        pub const DESTINATION_PORT: usize = 2;
        /// Length of header and data, 2 bytes.
        pub const LENGTH: usize = 4;
        /// Checksum, 2 bytes.
        pub const CHECKSUM: usize = 6;
    }
}

/// TCP (RFC 9293 section 3.1).
pub mod tcp {
    /// Length of a header without options.
    pub const LENGTH: usize = 20;
    /// The flag FIN.
    pub const FIN: u8 = 0x01;
    /// The flag SYN.
    pub const SYN: u8 = 0x02;
    /// The flag RST.
    pub const RST: u8 = 0x04;
    /// The flag ACK.
    pub const ACK: u8 = 0x10;

    /// Where the fields stand.
    pub mod offset {
        /// Header length in 32-bit words, in the upper half of the byte.
        pub const DATA_OFFSET: usize = 12;
        /// Flags.
        pub const FLAGS: usize = 13;
        /// Checksum, 2 bytes.
        pub const CHECKSUM: usize = 16;
    }
}

/// ICMP for IPv4 (RFC 792).
pub mod icmp {
    /// Length of the header.
    pub const LENGTH: usize = 8;
    /// Type: echo reply.
    pub const ECHO_REPLY: u8 = 0;
    /// Type: destination unreachable.
    pub const UNREACHABLE: u8 = 3;
    /// Type: source quench.
    pub const SOURCE_QUENCH: u8 = 4;
    /// Type: redirect.
    pub const REDIRECT: u8 = 5;
    /// Type: echo.
    pub const ECHO: u8 = 8;
    /// Type: time exceeded.
    pub const TIME_EXCEEDED: u8 = 11;
    /// Type: parameter problem.
    pub const PARAMETER_PROBLEM: u8 = 12;
    /// Type: timestamp, the first of six kinds of questions and answers that are no errors.
    pub const TIMESTAMP: u8 = 13;
    /// Type: address mask reply (RFC 950), the last of those six.
    pub const ADDRESS_MASK_REPLY: u8 = 18;
    /// Code of [`UNREACHABLE`]: no route to the network.
    pub const NETWORK_UNREACHABLE: u8 = 0;
    /// Code of [`UNREACHABLE`]: fragmentation is needed, and the packet forbids it.
    pub const FRAGMENTATION_NEEDED: u8 = 4;

    /// Where the fields stand.
    pub mod offset {
        /// Type.
        pub const TYPE: usize = 0;
        /// Code.
        pub const CODE: usize = 1;
        /// Checksum, 2 bytes.
        pub const CHECKSUM: usize = 2;
        /// Identifier of an echo and its reply, 2 bytes.
        pub const IDENTIFIER: usize = 4;
        /// MTU of the next hop in "fragmentation needed", 2 bytes (RFC 1191 section 4).
        pub const MTU: usize = 6;
    }
}

/// ICMP for IPv6 (RFC 4443). Its header has the fields of ICMP for IPv4, and the MTU of the next hop takes 4 bytes from byte 4 on.
pub mod icmpv6 {
    /// Type: destination unreachable.
    pub const UNREACHABLE: u8 = 1;
    /// Type: packet too big.
    pub const TOO_BIG: u8 = 2;
    /// Type: parameter problem, the last of the errors that are defined.
    pub const PARAMETER_PROBLEM: u8 = 4;
    /// The first type of a message that is no error (RFC 4443 section 2.1).
    pub const INFORMATIONAL: u8 = 128;
    /// Type: echo request.
    pub const ECHO: u8 = 128;
    /// Type: echo reply.
    pub const ECHO_REPLY: u8 = 129;
    /// Type: router solicitation, the first of neighbour discovery's five (RFC 4861 section 4).
    pub const ROUTER_SOLICITATION: u8 = 133;
    /// Type: redirect, the last of those five.
    pub const REDIRECT: u8 = 137;
    /// Code of [`UNREACHABLE`]: no route to the destination.
    pub const NO_ROUTE: u8 = 0;
}

/// Protocol numbers of what an IP header is followed by.
pub mod protocol {
    /// ICMP for IPv4.
    pub const ICMP: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// ICMP for IPv6.
    pub const ICMPV6: u8 = 58;
    /// SCTP.
    pub const SCTP: u8 = 132;

    /// Extension headers of IPv6, which stand between its header and that of the transport (the registry of RFC 7045 section 4).
    pub mod extension {
        /// Hop-by-hop options. A jumbogram has them, too, and so has the frame of many segments that Linux makes longer than 65,535
        /// bytes (BIG TCP).
        pub const HOP_BY_HOP: u8 = 0;
        /// Routing.
        pub const ROUTING: u8 = 43;
        /// Fragment.
        pub const FRAGMENT: u8 = 44;
        /// Encapsulating security payload.
        pub const ESP: u8 = 50;
        /// Authentication.
        pub const AUTHENTICATION: u8 = 51;
        /// Destination options.
        pub const DESTINATION_OPTIONS: u8 = 60;
        /// Mobility.
        pub const MOBILITY: u8 = 135;
        /// Host identity protocol.
        pub const HOST_IDENTITY: u8 = 139;
        /// Shim6.
        pub const SHIM6: u8 = 140;
    }
}
