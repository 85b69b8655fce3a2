//! The Docker daemon's options that follow from subnet.env: the same variables, byte for byte, that flannel's
//! dist/mk-docker-opts.sh makes of it.
use std::collections::BTreeMap;

use ipnet::{IpNet, Ipv4Net};
use serde::Serialize;

/// The options, under the names that dockerd's daemon.json has for them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DockerOptions {
    /// Address and prefix length of docker0: `10.244.61.1/24`.
    pub bip: IpNet,
    /// Whether Docker masquerades. It must if the agent does not.
    #[serde(rename = "ip-masq", skip_serializing_if = "Option::is_none")]
    pub ip_masq: Option<bool>,
    /// The size of the largest IP packet that fits into the overlay, in bytes.
    pub mtu: u32,
}

/// In which form the variables are written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Form {
    /// One variable for each option: `DOCKER_OPT_MTU="--mtu=1450"`.
    pub individual: bool,
    /// All options in one variable.
    pub combined: bool,
    /// The variable's name.
    pub key: String,
    /// The variable's value so far. It is kept in front of the options, except for the options that are written anew.
    pub before: String,
}

/// The error for a subnet.env that lacks what Docker needs: a phrase about the file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadSubnetEnv(String);

impl DockerOptions {
    /// Reads the text of subnet.env. Without `ip_masq` the options do not mention masquerading.
    pub fn of(subnet_env: &str, ip_masq: bool) -> Result<Self, BadSubnetEnv> {
        let variables: BTreeMap<_, _> = subnet_env
            .lines()
            .filter_map(|line| line.trim().split_once('='))
            .map(|(name, value)| (name, value.trim_matches(['"', '\''])))
            .collect();
        let bad = |name: &str, wants: &str| {
            let is = variables.get(name).map_or("missing".to_owned(), |value| format!("`{value}`"));
            BadSubnetEnv(format!("{name} is {is}, but it must be {wants}"))
        };
        let value = |name| variables.get(name).copied().unwrap_or_default();

        let bip: Ipv4Net = value("FLANNEL_SUBNET")
            .parse()
            .map_err(|_| bad("FLANNEL_SUBNET", "an address with its length such as 10.244.61.1/24"))?;
        let mtu = value("FLANNEL_MTU").parse().map_err(|_| bad("FLANNEL_MTU", "a number of bytes"))?;
        let ip_masq = match value("FLANNEL_IPMASQ") {
            _ if !ip_masq => None,
            "true" => Some(false),
            "false" => Some(true),
            _ => return Err(bad("FLANNEL_IPMASQ", "true or false")),
        };
        Ok(Self { bip: bip.into(), ip_masq, mtu })
    }

    /// The variables, one on each line, for systemd's `EnvironmentFile=` or a shell.
    pub fn text(&self, form: &Form) -> String {
        let mut options = vec![("BIP", format!("--bip={}", self.bip))];
        options.extend(self.ip_masq.map(|masq| ("IPMASQ", format!("--ip-masq={masq}"))));
        options.push(("MTU", format!("--mtu={}", self.mtu)));

        let mut text = String::new();
        if form.individual {
            text.extend(options.iter().map(|(name, option)| format!("DOCKER_OPT_{name}=\"{option}\"\n")));
        }
        if form.combined {
            let names = options.iter().filter_map(|(_, option)| option.split_once('=')).map(|(name, _)| name);
            let mut all = without(&form.before, &names.collect::<Vec<_>>());
            if !all.is_empty() {
                all.push(' ');
            }
            all.extend(options.iter().map(|(_, option)| format!(" {option}")));
            text.push_str(&format!("{}=\"{all}\"\n", form.key));
        }
        text
    }
}

/// `before` without these options. It stays untouched if it has none of them. The options of an earlier run are
/// among what systemd passes to the next run, because `EnvironmentFile=` holds for `ExecStartPre=`, too. Without this
/// function they would be repeated once more at each restart.
fn without(before: &str, names: &[&str]) -> String {
    let is_anew = |word: &str| word.split_once('=').is_some_and(|(name, _)| names.contains(&name));
    if !before.split_whitespace().any(is_anew) {
        return before.to_owned();
    }
    // Only single spaces separate words here: other white space between words is the user's, and is kept.
    let kept: Vec<&str> = before.split(' ').filter(|word| !is_anew(word.trim())).collect();
    kept.join(" ").trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const UDP: &str = "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.61.1/24\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=false\n";

    fn form(individual: bool, combined: bool) -> Form {
        Form { individual, combined, key: "DOCKER_OPTS".to_owned(), before: String::new() }
    }

    /// What flannel's script wrote for this subnet.env when it was run.
    #[test]
    fn every_form_is_the_scripts_byte_for_byte() {
        let opts = DockerOptions::of(UDP, true).unwrap();
        let individual = "DOCKER_OPT_BIP=\"--bip=10.244.61.1/24\"\nDOCKER_OPT_IPMASQ=\"--ip-masq=true\"\nDOCKER_OPT_MTU=\"--mtu=1472\"\n";
        let combined = "DOCKER_OPTS=\" --bip=10.244.61.1/24 --ip-masq=true --mtu=1472\"\n";
        assert_eq!(opts.text(&form(true, true)), format!("{individual}{combined}"));
        assert_eq!(opts.text(&form(true, false)), individual);
        assert_eq!(opts.text(&form(false, true)), combined);

        let key = Form { key: "DOCKER_NETWORK_OPTIONS".to_owned(), ..form(false, true) };
        assert_eq!(opts.text(&key), combined.replace("DOCKER_OPTS", "DOCKER_NETWORK_OPTIONS"));
        let before = Form { before: "-H fd://".to_owned(), ..form(false, true) };
        assert_eq!(opts.text(&before), combined.replace("\" --bip", "\"-H fd://  --bip"));
    }

    #[test]
    fn what_an_earlier_run_wrote_is_not_kept_in_front() {
        let value = |text: String| text.trim_end().split_once('=').unwrap().1.trim_matches('"').to_owned();
        let run = |env: &str, before: &str| {
            let form = Form { before: before.to_owned(), ..form(false, true) };
            value(DockerOptions::of(env, true).unwrap().text(&form))
        };
        for own in ["", "-H fd://", "-H fd:// --label 'a  b'"] {
            let first = run(UDP, own);
            assert_eq!(run(UDP, &first), first);
            // The subnet differs from the earlier one.
            let moved = UDP.replace("10.244.61.1", "10.244.62.1");
            assert_eq!(run(&moved, &first), run(&moved, own));
        }
        // An option that is not written anew is the user's.
        let silent = DockerOptions::of(UDP, false).unwrap();
        let form = Form { before: "--ip-masq=true --mtu=1 -D".to_owned(), ..form(false, true) };
        assert_eq!(value(silent.text(&form)), "--ip-masq=true -D  --bip=10.244.61.1/24 --mtu=1472");
    }

    #[test]
    fn docker_masquerades_where_the_agent_does_not() {
        let masq = UDP.replace("IPMASQ=false", "IPMASQ=true");
        assert_eq!(DockerOptions::of(&masq, true).unwrap().ip_masq, Some(false));
        let silent = DockerOptions::of(&masq, false).unwrap();
        assert_eq!(silent.text(&form(false, true)), "DOCKER_OPTS=\" --bip=10.244.61.1/24 --mtu=1472\"\n");
        let individual = silent.text(&form(true, false));
        assert!(!individual.contains("IPMASQ"), "{individual}");
    }

    #[test]
    fn json_is_a_part_of_dockers_own_file() {
        let json = serde_json::to_string(&DockerOptions::of(UDP, true).unwrap()).unwrap();
        assert_eq!(json, r#"{"bip":"10.244.61.1/24","ip-masq":true,"mtu":1472}"#);
        let json = serde_json::to_string(&DockerOptions::of(UDP, false).unwrap()).unwrap();
        assert_eq!(json, r#"{"bip":"10.244.61.1/24","mtu":1472}"#);
    }

    #[test]
    fn dual_stack_files_and_quotes_are_read() {
        let dual = UDP.replace("FLANNEL_MTU", "FLANNEL_IPV6_SUBNET=fd00:244:0:4b::1/64\nFLANNEL_MTU");
        let quoted = UDP.replace("1472", "\"1472\"");
        for text in [dual, quoted] {
            let opts = DockerOptions::of(&text, true).unwrap();
            assert_eq!((opts.bip.to_string().as_str(), opts.mtu), ("10.244.61.1/24", 1472));
        }
    }

    #[test]
    fn what_is_missing_or_senseless_is_named() {
        for (text, says) in [
            (String::new(), "FLANNEL_SUBNET is missing"),
            (UDP.replace("10.244.61.1/24", "10.244.61.1"), "FLANNEL_SUBNET is `10.244.61.1`"),
            (UDP.replace("MTU=1472", "MTU=many"), "FLANNEL_MTU is `many`, but it must be a number of bytes"),
            (UDP.replace("FLANNEL_MTU", "MTU"), "FLANNEL_MTU is missing"),
            (UDP.replace("=false", "=no"), "FLANNEL_IPMASQ is `no`, but it must be true or false"),
        ] {
            let error = DockerOptions::of(&text, true).unwrap_err().to_string();
            assert!(error.contains(says), "{text}: {error}");
        }
    }
}
