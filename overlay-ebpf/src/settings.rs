//! The constants that this program was loaded with, read one field at a time.
use core::ptr::addr_of;

use overlay_common::{
    Addr4, Addr6, Address, SETTING_PART, SETTING_PART6, STRIP_MAGIC, Settings, Settings6, StripMark,
    ipv6::is_between,
};

/// The loader fills it in before the kernel freezes it. No program ever runs with these zeros.
#[unsafe(no_mangle)]
static SETTINGS: Settings = Settings {
    network: [0; 4],
    network_mask: [0; 4],
    subnet: [0; 4],
    subnet_mask: [0; 4],
    local: [0; 4],
    underlay: 0,
    device: 0,
    vni: 0,
    port: [0; 2],
    vtep_mac: [0; 6],
    flags: 0,
    port_min: 0,
    port_count: 0,
    gateway: [0; 4],
    underlay_mac: [0; 6],
    encapsulation: 0,
    host_bits: 0,
    leasable_first: 0,
    leasable_last: 0,
};

/// The same of IPv6. The programs for IPv4 do not read it.
#[unsafe(no_mangle)]
static SETTINGS6: Settings6 = Settings6 {
    network: NONE6,
    network_mask: NONE6,
    subnet: NONE6,
    subnet_mask: NONE6,
    local: NONE6,
    gateway: NONE6,
    leasable_first: NONE6,
    leasable_last: NONE6,
};

const NONE6: Addr6 = Addr6 { words: [0; 4] };

macro_rules! field {
    ($(#[doc = $doc:literal])* $name:ident: $kind:ty) => {
        $(#[doc = $doc])*
        #[inline(always)]
        pub(crate) fn $name() -> $kind {
            // SAFETY: a field of a static. Volatile, since the loader writes it and the compiler saw only zeros.
            unsafe { addr_of!(SETTINGS.$name).read_volatile() }
        }
    };
}

macro_rules! word {
    ($(#[doc = $doc:literal])* $name:ident) => {
        $(#[doc = $doc])*
        #[inline(always)]
        fn $name() -> u32 {
            const { assert!(core::mem::offset_of!(Settings, $name) % 4 == 0) };
            // SAFETY: a field of a static whose type is aligned to 4, at an offset divisible by 4 (asserted above).
            // One load of four bytes where the array's own alignment would make it four.
            unsafe { addr_of!(SETTINGS.$name).cast::<u32>().read_volatile() }
        }
    };
}

macro_rules! words {
    ($(#[doc = $doc:literal])* $name:ident as $as:ident: $count:literal) => {
        $(#[doc = $doc])*
        #[inline(always)]
        pub(crate) fn $as() -> [u16; $count] {
            const {
                assert!(core::mem::offset_of!(Settings, $name) % 2 == 0);
                assert!(size_of_val(&SETTINGS.$name) == 2 * $count);
            }
            // SAFETY: a field of a static whose type is aligned to 4, at an even offset (asserted above).
            unsafe { addr_of!(SETTINGS.$name).cast::<[u16; $count]>().read_volatile() }
        }
    };
}

macro_rules! address6 {
    ($name:ident as $as:ident) => {
        #[inline(always)]
        fn $as() -> Addr6 {
            // SAFETY: a field of a static. Volatile, since the loader writes it and the compiler saw only zeros.
            Addr6 { words: unsafe { addr_of!(SETTINGS6.$name.words).read_volatile() } }
        }
    };
}

address6!(network as network6);
address6!(network_mask as network6_mask);
address6!(subnet as subnet6);
address6!(subnet_mask as subnet6_mask);
address6!(local as local6);
address6!(gateway as gateway6);
address6!(leasable_first as leasable6_first);
address6!(leasable_last as leasable6_last);
word!(network);
word!(network_mask);
word!(subnet);
word!(subnet_mask);
word!(local);
word!(gateway);
field!(underlay: u32);
field!(device: u32);
field!(encapsulation: u8);
field!(vni: u32);
words!(port as port_words: 1);
words!(vtep_mac as vtep_mac_words: 3);
field!(underlay_mac: [u8; 6]);
field!(flags: u32);
field!(port_min: u16);
field!(port_count: u16);
field!(host_bits: u8);
field!(leasable_first: u32);
field!(leasable_last: u32);

/// UDP port of the tunnel, network order.
#[inline(always)]
pub(crate) fn port() -> [u8; 2] {
    let [port] = port_words();
    port.to_ne_bytes()
}

/// MAC address of overlay0.
#[inline(always)]
pub(crate) fn vtep_mac() -> [u8; 6] {
    let [[a, b], [c, d], [e, f]] = vtep_mac_words().map(u16::to_ne_bytes);
    [a, b, c, d, e, f]
}

/// How an address relates to the network's and the host's own, in its family.
pub(crate) trait Prefixes: Address {
    /// This host's address on the underlay.
    fn local() -> Self;

    /// The address that ICMP errors to containers come from.
    fn gateway() -> Self;

    /// Base of the leased subnet that holds this address: its key in the table of peers.
    fn subnet(self) -> Self;

    /// Inside Network.
    fn in_network(self) -> bool;

    /// Inside the leasable range, for an address inside Network.
    fn is_leasable(self) -> bool;

    /// Inside this host's own subnet.
    fn in_subnet(self) -> bool;

    /// The last address of Network, if the family has broadcasts.
    fn is_broadcast(self) -> bool;

    /// Inside this host's own subnet, and neither its base (overlay0's address) nor its gateway.
    fn is_container(self) -> bool;
}

impl Prefixes for Addr4 {
    #[inline(always)]
    fn local() -> Self {
        Self::new(local().to_ne_bytes())
    }

    #[inline(always)]
    fn gateway() -> Self {
        Self::new(gateway().to_ne_bytes())
    }

    #[inline(always)]
    fn subnet(self) -> Self {
        Self::new((self.raw() & subnet_mask()).to_ne_bytes())
    }

    #[inline(always)]
    fn in_network(self) -> bool {
        self.raw() & network_mask() == network()
    }

    #[inline(always)]
    fn is_leasable(self) -> bool {
        // The flag is a constant of the loaded program: where all of Network is leasable, nothing is compared.
        !has(SETTING_PART) || (leasable_first()..=leasable_last()).contains(&u32::from_be(self.raw()))
    }

    #[inline(always)]
    fn in_subnet(self) -> bool {
        self.raw() & subnet_mask() == subnet()
    }

    #[inline(always)]
    fn is_broadcast(self) -> bool {
        self.raw() == network() | !network_mask()
    }

    #[inline(always)]
    fn is_container(self) -> bool {
        self.in_subnet() && self.raw() != subnet() && self.raw() != gateway()
    }
}

impl Prefixes for Addr6 {
    #[inline(always)]
    fn local() -> Self {
        local6()
    }

    #[inline(always)]
    fn gateway() -> Self {
        gateway6()
    }

    #[inline(always)]
    fn subnet(self) -> Self {
        self.masked(subnet6_mask())
    }

    #[inline(always)]
    fn in_network(self) -> bool {
        self.masked(network6_mask()) == network6()
    }

    #[inline(always)]
    fn is_leasable(self) -> bool {
        // As for IPv4.
        !has(SETTING_PART6) || is_between(self, leasable6_first(), leasable6_last())
    }

    #[inline(always)]
    fn in_subnet(self) -> bool {
        self.masked(subnet6_mask()) == subnet6()
    }

    #[inline(always)]
    fn is_broadcast(self) -> bool {
        false
    }

    #[inline(always)]
    fn is_container(self) -> bool {
        self.in_subnet() && self != subnet6() && self != gateway6()
    }
}

/// The number in Network of the subnet that holds `address`, which is inside Network.
#[inline(always)]
pub(crate) fn subnet_number(address: Addr4) -> u32 {
    u32::from_be(address.raw() & !network_mask()) >> host_bits()
}

/// The number of `address` in the own subnet, which holds it.
#[inline(always)]
pub(crate) fn address_number(address: Addr4) -> u32 {
    u32::from_be(address.raw() & !subnet_mask())
}

/// The strip mark that this network's programs put in front of a frame they have decapsulated.
#[inline(always)]
pub(crate) fn strip_mark<A: Prefixes>(slot: u32) -> StripMark<A> {
    StripMark { magic: STRIP_MAGIC, port: port(), vni: vni(), local: A::local(), slot }
}

/// One of the `SETTING_*` bits.
#[inline(always)]
pub(crate) fn has(flag: u32) -> bool {
    flags() & flag != 0
}
