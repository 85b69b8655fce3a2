//! `subnet.env`, the file that Docker's options script and the CNI plugin read. It has flannel's text, byte for byte
//! (flannel's pkg/subnet/subnet.go).
use std::{fs, io::Write as _, os::unix::fs::PermissionsExt as _, path::Path};

use anyhow::Context as _;
use ipnet::IpNet;

use crate::model::addr::gateway;

/// The content of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SubnetEnv {
    /// The whole overlay.
    pub network: IpNet,
    /// This host's subnet.
    pub subnet: IpNet,
    /// The whole overlay's addresses of IPv6, and this host's IPv6 subnet, if it has one.
    pub ipv6: Option<(IpNet, IpNet)>,
    /// Size of the largest IP packet that fits into the overlay, in bytes.
    pub mtu: u32,
    /// Whether the agent masquerades. If it does, Docker and CNI must not.
    pub ip_masq: bool,
}

/// What an earlier run of flannel or of this agent left in the file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Earlier {
    /// The whole overlay at that time.
    pub network: Option<IpNet>,
    /// This host's subnet at that time.
    pub subnet: Option<IpNet>,
    /// This host's IPv6 subnet at that time.
    pub ipv6_subnet: Option<IpNet>,
}

impl SubnetEnv {
    /// The file's text. `FLANNEL_SUBNET` and `FLANNEL_IPV6_SUBNET` have the first address in the subnet, and not the subnet's base
    /// address.
    pub fn text(&self) -> String {
        let first = |subnet: IpNet| format!("{}/{}", gateway(subnet), subnet.prefix_len());
        let ipv6 = self.ipv6.map(|(network, subnet)| {
            format!("FLANNEL_IPV6_NETWORK={}\nFLANNEL_IPV6_SUBNET={}\n", network.trunc(), first(subnet))
        });
        format!(
            "FLANNEL_NETWORK={}\nFLANNEL_SUBNET={}\n{}FLANNEL_MTU={}\nFLANNEL_IPMASQ={}\n",
            self.network.trunc(),
            first(self.subnet),
            ipv6.unwrap_or_default(),
            self.mtu,
            self.ip_masq
        )
    }

    /// Writes the file with mode 0644 in a folder with mode 0755. It is renamed into place, so nobody reads half of it.
    pub fn write(&self, path: &Path) -> anyhow::Result<()> {
        replace(path, self.text().as_bytes())
            .with_context(|| format!("write {} (--subnet-file names another file)", path.display()))
    }
}

/// Writes a file that other programs may read at any time. It has mode 0644 and is renamed into place. The folder is made
/// if there is none.
pub(crate) fn replace(path: &Path, text: &[u8]) -> anyhow::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if !folder.exists() {
        fs::create_dir_all(folder).context("create its folder")?;
        fs::set_permissions(folder, fs::Permissions::from_mode(0o755))?;
    }
    let name = path.file_name().context("the path names no file")?;
    let mut hidden = std::ffi::OsString::from(".");
    hidden.push(name);
    let hidden = folder.join(hidden);
    let mut file = fs::File::create(&hidden)?;
    file.write_all(text)?;
    file.set_permissions(fs::Permissions::from_mode(0o644))?;
    file.sync_all()?;
    fs::rename(&hidden, path)?;
    Ok(())
}

/// Reads what an earlier run left. If there is no file, or its lines make no sense, that is no error: nothing was left.
pub fn read(path: &Path) -> Earlier {
    fs::read_to_string(path).map(|text| parse(&text)).unwrap_or_default()
}

pub(crate) fn parse(text: &str) -> Earlier {
    let value = |name: &str| -> Option<IpNet> {
        let line = text.lines().find_map(|line| line.trim().strip_prefix(name)?.strip_prefix('='))?;
        let net: IpNet = line.trim_matches('"').parse().ok()?;
        Some(net.trunc())
    };
    let ipv4 = |name| value(name).filter(|net| net.addr().is_ipv4());
    Earlier {
        network: ipv4("FLANNEL_NETWORK"),
        subnet: ipv4("FLANNEL_SUBNET"),
        ipv6_subnet: value("FLANNEL_IPV6_SUBNET").filter(|net| net.addr().is_ipv6()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> SubnetEnv {
        SubnetEnv {
            network: "10.244.0.0/16".parse().unwrap(),
            subnet: "10.244.50.0/24".parse().unwrap(),
            ipv6: None,
            mtu: 1450,
            ip_masq: false,
        }
    }

    /// What a real flanneld wrote for this network and subnet.
    const FLANNELS: &str = "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.50.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n";

    #[test]
    fn written_byte_for_byte_with_flannels_permissions() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("flannel/subnet.env");
        sample().write(&path).unwrap();
        assert_eq!(fs::read(&path).unwrap(), FLANNELS.as_bytes());
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o644);
        assert_eq!(fs::metadata(path.parent().unwrap()).unwrap().permissions().mode() & 0o777, 0o755);
        sample().write(&path).unwrap();
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "nothing but the file stays");
        assert_eq!(
            read(&path),
            Earlier { network: Some(sample().network), subnet: Some(sample().subnet), ipv6_subnet: None }
        );
    }

    #[test]
    fn dual_stack_and_broken_files_say_what_they_can() {
        // As flanneld's code writes it.
        let dual = "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.50.1/24\nFLANNEL_IPV6_NETWORK=fd00:244::/48\nFLANNEL_IPV6_SUBNET=fd00:244:0:4b::1/64\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n";
        let ipv6 = ("fd00:244::/48".parse().unwrap(), "fd00:244:0:4b::/64".parse().unwrap());
        assert_eq!(SubnetEnv { ipv6: Some(ipv6), ..sample() }.text(), dual);
        let found = parse(dual);
        assert_eq!((found.network, found.subnet), (Some(sample().network), Some(sample().subnet)));
        assert_eq!(found.ipv6_subnet, Some(ipv6.1));
        assert_eq!(parse("FLANNEL_SUBNET=fd00::1/64\nFLANNEL_IPV6_SUBNET=10.0.0.1/24"), Earlier::default());
        assert_eq!(parse("FLANNEL_SUBNET=10.244\nFLANNEL_NETWORK"), Earlier::default());
        assert_eq!(read(Path::new("/nonexistent/subnet.env")), Earlier::default());
    }

    #[test]
    fn an_unwritable_path_is_named() {
        let error = format!("{:#}", sample().write(Path::new("/proc/nowhere/subnet.env")).unwrap_err());
        assert!(error.contains("/proc/nowhere/subnet.env"), "{error}");
    }
}
