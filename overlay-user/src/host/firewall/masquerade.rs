//! Masquerading of what leaves the overlay: one nftables table of ours, `ip overlay-<network>`. No other table is touched.
//!
//! The crate `nftables` exchanges JSON with the command `nft`. Every host with nftables has the command, and the command
//! hides the differences among kernels. The crate is maintained, has a licence that fits ours, and depends on few and small
//! crates. The libraries that speak netlink themselves bind C libraries (nftnl) or are under the GPL (rustables).
use std::{borrow::Cow, io::ErrorKind, net::IpAddr, path::PathBuf};

use anyhow::{Error, Result, anyhow, bail};
use ipnet::IpNet;
use nftables::{
    batch::Batch,
    expr::{
        BinaryOperation, Expression, Meta, MetaKey, NamedExpression, Payload, PayloadField, Prefix, Range,
    },
    helper::{self, DEFAULT_ARGS, NftablesError},
    schema::{Chain, NfCmd, NfListObject, Nftables, Rule, Table},
    stmt::{Match, NAT, NATFlag, Operator, Return, Statement},
    types::{NfChainPolicy, NfChainType, NfFamily, NfHook},
};
use serde_json::Value;

use super::{nft::nft_has_table, status::Looked, wanted::Wanted};
use crate::host::command;

/// Name of our chain. It is not a word of nft's language, as `masquerade` is: `nft -f` must be able to read what
/// `nft list ruleset` saved.
const CHAIN: &str = "postrouting";
/// `NF_IP_PRI_NAT_SRC` of linux/netfilter_ipv4.h, the priority of iptables' POSTROUTING, too.
const PRIORITY: i32 = 100;
/// Kubernetes' masquerade bit (kubelet's `--iptables-masquerade-bit`, 14 by default). Packets with it are left to
/// kube-proxy's own rule.
const KUBE_MARK: u32 = 1 << 14;

/// The rules of one network.
#[derive(Debug)]
pub struct Masquerade {
    table: String,
    network: IpNet,
    /// The leasable range, if it is only a part of Network. The rest of Network is as much outside as any other address.
    part: Option<(IpAddr, IpAddr)>,
    /// The tunnel device.
    device: String,
    subnet: IpNet,
    /// Whether source ports are drawn at random.
    random_ports: bool,
    /// The table as it was listed after we wrote it, with its handles. Any later change of the table shows as a difference.
    written: Option<Value>,
}

impl Masquerade {
    /// The rules of the wanted network.
    pub fn new(wanted: &Wanted) -> Self {
        let Wanted { name, plan, device, subnet, .. } = wanted;
        Self {
            table: table(name),
            network: plan.network.trunc(),
            part: Some(plan.leasable()).filter(|_| !plan.is_whole()),
            device: device.clone(),
            subnet: subnet.trunc(),
            random_ports: wanted.random_ports,
            written: None,
        }
    }

    /// Looks whether the table is as it was written, and writes it again if it is not. That is one transaction, so there
    /// is no moment without the table, and connections keep their translation. The first look always writes: thus the
    /// table of an earlier agent is adopted.
    pub async fn look(&mut self) -> Result<Looked> {
        if self.written.is_some() && list(&self.table).await.ok() == self.written {
            return Ok(Looked::Kept);
        }
        self.written = None;
        apply(&self.batch()).await.map_err(|error| words("write", &self.table, &error))?;
        let listed = list(&self.table).await.map_err(|error| words("read back", &self.table, &error))?;
        let rules = listed
            .as_array()
            .map_or(0, |objects| objects.iter().filter(|it| it.get("rule").is_some()).count());
        if rules != self.rules().len() {
            bail!("table ip {}: somebody alters it as we write it: it has {rules} rules", self.table);
        }
        self.written = Some(listed);
        Ok(Looked::Written)
    }

    /// The one transaction that replaces the table.
    fn batch(&self) -> Nftables<'_> {
        let mut batch = emptied(&self.table);
        batch.add(NfListObject::Table(named(&self.table)));
        batch.add(NfListObject::Chain(Chain {
            family: NfFamily::IP,
            table: Cow::Borrowed(&self.table),
            name: Cow::Borrowed(CHAIN),
            _type: Some(NfChainType::NAT),
            hook: Some(NfHook::Postrouting),
            prio: Some(PRIORITY),
            policy: Some(NfChainPolicy::Accept),
            ..Chain::default()
        }));
        for (comment, expr) in self.rules() {
            batch.add(NfListObject::Rule(Rule {
                family: NfFamily::IP,
                table: Cow::Borrowed(&self.table),
                chain: Cow::Borrowed(CHAIN),
                expr: Cow::Owned(expr),
                comment: Some(Cow::Borrowed(comment)),
                ..Rule::default()
            }));
        }
        batch.to_nftables()
    }

    /// The rules. They mean the same as flannel's iptables rules, but that Network is the leasable range alone: a machine with
    /// another address of Network knows no route to a container. flannel's own nftables rules differ: they never masquerade
    /// packets that come from outside to another host's container, so the answers do not come back through this host.
    fn rules(&self) -> Vec<(&'static str, Vec<Statement<'static>>)> {
        let subnet = || prefix(self.subnet);
        let multicast = prefix(IpNet::new_assert([224, 0, 0, 0].into(), 4));
        let network = || self.part.map_or_else(|| prefix(self.network), |(first, last)| range(first, last));
        let masquerade = || masquerade(self.random_ports);
        let (is, is_not) = (Operator::EQ, Operator::NEQ);
        let mut rules = vec![
            ("marked: kube-proxy masquerades it", vec![is_marked(), leave()]),
            ("ours within the overlay", vec![source(is, subnet()), destination(is, network()), leave()]),
        ];
        if self.part.is_some() {
            // Leases outside the range are peers as others are. What else would take the device has no peer.
            let through = vec![source(is, subnet()), leaves_by(&self.device), leave()];
            rules.push(("ours to a lease outside the range", through));
        }
        rules.extend([
            ("to containers here, who see who asks", vec![destination(is, subnet()), leave()]),
            ("out of the overlay", vec![source(is, network()), destination(is_not, multicast), masquerade()]),
            (
                "from outside to another host's containers: their answers must come back here",
                vec![source(is_not, network()), destination(is, network()), masquerade()],
            ),
        ]);
        rules
    }
}

/// Removes the table of the network with this name, if there is one. There is none without `nft` or nftables.
///
/// # Errors
/// When the table exists and could not be removed, or it is not known whether it exists.
pub async fn remove(name: &str) -> Result<()> {
    let table = table(name);
    match nft_has_table("ip", &table).await {
        Ok(true) => {}
        Ok(false) => return Ok(()),
        Err(error) => bail!("table ip {table} may be there: {error}"),
    }
    apply(&emptied(&table).to_nftables()).await.map_err(|error| words("delete", &table, &error))
}

/// Tries whether `nft` can be run and the kernel answers it.
///
/// # Errors
/// Why not, and what to do.
pub async fn usable() -> Result<()> {
    match ask(["list", "tables", "ip"]).await {
        Ok(_) => Ok(()),
        Err(error) => Err(words("list", "*", &error)),
    }
}

fn table(name: &str) -> String {
    format!("overlay-{name}")
}

fn named(table: &str) -> Table<'_> {
    Table { family: NfFamily::IP, name: Cow::Borrowed(table), ..Table::default() }
}

/// Deletes the table, whether it exists or not. It is added first for that, and adding an existing table changes nothing.
fn emptied(table: &str) -> Batch<'_> {
    let mut batch = Batch::new();
    batch.add(NfListObject::Table(named(table)));
    batch.add_cmd(NfCmd::Delete(NfListObject::Table(named(table))));
    batch
}

async fn apply(batch: &Nftables<'_>) -> Result<(), NftablesError> {
    helper::apply_ruleset_with_args_async(batch, Some(&nft()?), DEFAULT_ARGS).await
}

async fn ask<const N: usize>(words: [&str; N]) -> Result<String, NftablesError> {
    helper::get_current_ruleset_raw_async(Some(&nft()?), words).await
}

/// Runs `nft` by its full path. The library itself would look in PATH alone.
fn nft() -> Result<PathBuf, NftablesError> {
    let missing = || NftablesError::NftExecution { program: "nft".into(), inner: ErrorKind::NotFound.into() };
    command::find("nft").ok_or_else(missing)
}

/// The table as `nft` lists it, as JSON. Some of the library's types would leave out what somebody may have added to the
/// table.
async fn list(table: &str) -> Result<Value, NftablesError> {
    let text = ask(["list", "table", "ip", table]).await?;
    let mut listed: Value = serde_json::from_str(&text).map_err(NftablesError::NftInvalidJson)?;
    let mut objects = listed["nftables"].take();
    if let Some(objects) = objects.as_array_mut() {
        objects.retain(|object| object.get("metainfo").is_none());
    }
    Ok(objects)
}

fn words(action: &str, table: &str, error: &NftablesError) -> Error {
    match error {
        NftablesError::NftExecution { inner, .. } if inner.kind() == ErrorKind::NotFound => {
            anyhow!("there is no `nft`: install nftables, or start the agent without --ip-masq")
        }
        NftablesError::NftFailed { stderr, .. } if !stderr.trim().is_empty() => {
            anyhow!("{action} table ip {table}: {}", stderr.lines().next().unwrap_or_default())
        }
        other => anyhow!("{action} table ip {table}: {other} (`nft` itself says why, in the agent's output)"),
    }
}

fn is_marked() -> Statement<'static> {
    let mark = Expression::Named(NamedExpression::Meta(Meta { key: MetaKey::Mark }));
    let bits = BinaryOperation::AND(mark, Expression::Number(KUBE_MARK));
    Statement::Match(Match {
        left: Expression::BinaryOperation(Box::new(bits)),
        right: Expression::Number(0),
        op: Operator::NEQ,
    })
}

fn source(op: Operator, addresses: Expression<'static>) -> Statement<'static> {
    address("saddr", op, addresses)
}

fn destination(op: Operator, addresses: Expression<'static>) -> Statement<'static> {
    address("daddr", op, addresses)
}

fn address(field: &'static str, op: Operator, right: Expression<'static>) -> Statement<'static> {
    let field = PayloadField { protocol: Cow::Borrowed("ip"), field: Cow::Borrowed(field) };
    Statement::Match(Match {
        left: Expression::Named(NamedExpression::Payload(Payload::PayloadField(field))),
        right,
        op,
    })
}

fn prefix(net: IpNet) -> Expression<'static> {
    let addr = Box::new(text(net.network()));
    Expression::Named(NamedExpression::Prefix(Prefix { addr, len: net.prefix_len().into() }))
}

fn range(first: IpAddr, last: IpAddr) -> Expression<'static> {
    Expression::Range(Box::new(Range { range: [text(first), text(last)] }))
}

fn leaves_by(device: &str) -> Statement<'static> {
    let name = Expression::Named(NamedExpression::Meta(Meta { key: MetaKey::Oifname }));
    Statement::Match(Match { left: name, right: text(device), op: Operator::EQ })
}

fn text(value: impl ToString) -> Expression<'static> {
    Expression::String(Cow::Owned(value.to_string()))
}

fn leave() -> Statement<'static> {
    Statement::Return(Some(Return {}))
}

fn masquerade(random_ports: bool) -> Statement<'static> {
    // flannel has this flag, too. Without it, two connections that are given the same port at once may collide, and one
    // of them loses a packet.
    let flags = random_ports.then(|| [NATFlag::FullyRandom].into());
    Statement::Masquerade(Some(NAT { addr: None, family: None, port: None, flags }))
}
