//! `cargo xtask endure`: agents are killed, ended, started and upgraded, round by round, and faults are struck between that, under
//! numbered packets in both directions. The command fails if a single packet is lost that no fault itself has cut off, or if the
//! agents take too long to mend what a fault has harmed.
use anyhow::{Context as _, Result, ensure};
use clap::Args;
use overlay_lab::{
    self as lab,
    endurance::{Binaries, Deck, Direction, Endurance, Fault, Harm, Round, Struck, Sum},
    project, random,
};
use serde_json::json;

#[derive(Args)]
pub(crate) struct EndureOptions {
    /// How many rounds.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Packets per second in each direction, as far as the machine sends them. Fewer than 1000 would not tell in a moment which tier
    /// carries them.
    #[arg(long, default_value_t = 50_000, value_parser = clap::value_parser!(u32).range(1000..))]
    rate: u32,
    /// The least number of packets in all rounds together. A round lasts until it has sent its share of them, but waits for that a
    /// minute at most; what is missing then is told, and fails the command at the end.
    #[arg(long, default_value_t = 10_500_000)]
    packets: u64,
    /// The faults to strike between the kills and restarts [default: all].
    #[arg(long, value_name = "FAULT", value_delimiter = ',', conflicts_with = "no_faults")]
    faults: Vec<Fault>,
    /// Strikes no faults.
    #[arg(long)]
    no_faults: bool,
    /// Draws the faults, whom they hit, and how long they last. Without it, the clock gives one, which is printed.
    #[arg(long)]
    seed: Option<u64>,
    /// By how much longer than on an idle machine the agents may take to mend what a fault has harmed.
    #[arg(long, value_name = "FACTOR", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    patience: u32,
    /// One frame per segment on the underlay, as behind a real NIC.
    #[arg(long)]
    wire_like: bool,
    /// Options of the agents: `--agent=--fast-path=off`. May be given several times.
    #[arg(long = "agent", value_name = "OPTION", allow_hyphen_values = true)]
    agent: Vec<String>,
    /// Prints the rounds as JSON at the end instead of the progress.
    #[arg(long)]
    json: bool,
}

pub(crate) fn endure(options: &EndureOptions) -> Result<()> {
    let seed = options.seed.unwrap_or_else(random::seed);
    // Also beside JSON, and whatever happens: only the seed strikes the same again.
    eprintln!("seed {seed}");
    run(options, seed).with_context(|| format!("with --seed {seed}"))
}

fn run(options: &EndureOptions, seed: u64) -> Result<()> {
    let binaries = Binaries::beside(project::build_overlay()?)?;
    let lab = lab::Options { wire_like: options.wire_like, ..lab::Options::default() };
    let agent: Vec<_> = options.agent.iter().map(String::as_str).collect();
    let kinds = if options.no_faults {
        &[]
    } else if options.faults.is_empty() {
        Fault::ALL
    } else {
        &options.faults[..]
    };
    let mut endurance = Endurance::start(lab, binaries, &agent, options.rate, Deck::new(kinds, seed))?;
    let least = options.packets / u64::from(options.rounds) / 2;
    let mut rounds = Vec::new();
    let mut total = Round::default();
    for number in 1..=options.rounds {
        let round = endurance.round(least, |step| {
            if !options.json {
                eprintln!("round {number}: {step}");
            }
        })?;
        if !options.json {
            show(&format!("round {number}"), &round);
            show_harms(&format!("round {number}"), &round);
        }
        total.add(&round);
        rounds.push(round);
    }
    let connection = endurance.finish()?;
    let too_slow = total.too_slow(options.patience);
    if options.json {
        let connection = json!({
            "bytes": connection.bytes,
            "longest_gap_ms": connection.longest_gap.as_millis(),
        });
        let report = json!({
            "seed": seed,
            "rounds": rounds,
            "total": total,
            "too_slow": too_slow,
            "connection": connection,
        });
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        show(&format!("{} rounds", options.rounds), &total);
        show_sums(&format!("{} rounds", options.rounds), &total);
        println!("{} faults; seed {seed} strikes the same again", total.faults.len());
        println!(
            "one TCP connection through all of it: {} MB, each byte compared; its longest pause, during a \
             return to the present layout or a fault that cut its path, was {} ms",
            connection.bytes >> 20,
            connection.longest_gap.as_millis()
        );
    }
    let mut wrong = too_slow;
    if total.lost() > 0 {
        wrong.push(format!("{} of {} packets were lost", total.lost(), total.sent()));
    }
    if total.missed() > 0 {
        wrong.push(format!(
            "{} packets fewer were sent than asked for, because this machine sends too slowly (--packets asks for fewer)",
            total.missed()
        ));
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("; "));
    Ok(())
}

fn show(name: &str, round: &Round) {
    for (between, Direction { sent, missed, delivered, lost, cut, duplicated, rate, longest_gap_ms }) in
        ["h1 -> h2", "h2 -> h1"].into_iter().zip(round.directions)
    {
        println!(
            "{name}: {between}: {sent} sent, {delivered} delivered, {lost} lost, {cut} cut off by faults, {duplicated} \
             duplicated; {rate} per second, longest gap {longest_gap_ms} ms"
        );
        if missed > 0 {
            println!("{name}: {between}: {missed} fewer were sent than asked for");
        }
    }
    if round.dropped > 0 {
        println!("{name}: the programs dropped or answered {}", round.dropped);
    }
    if round.machine_overflows > 0 {
        println!(
            "{name}: this machine's queues overflowed {} times, whoever filled them",
            round.machine_overflows
        );
    }
}

/// What faults harmed, and for how long.
fn show_harms(name: &str, round: &Round) {
    for Struck { what: struck, on_stack, harms, .. } in &round.faults {
        let carrier = if *on_stack { "the stack" } else { "the fast path" };
        for Harm { what, lasted_ms, limit_ms, cuts_path, lost: [out, back] } in harms {
            let lost = match cuts_path {
                true => format!(", in which {out} and {back} packets were lost"),
                false => String::new(),
            };
            println!(
                "{name}: {struck}, carried by {carrier}: {what} for {lasted_ms} of at most {limit_ms} ms{lost}"
            );
        }
    }
}

/// The same of all rounds together.
fn show_sums(name: &str, total: &Round) {
    for ((fault, what), Sum { times, longest_ms, limit_ms, cuts, lost }) in total.sums() {
        let cut = match cuts {
            0 => String::new(),
            _ => format!("; {cuts} times this cut the path, and {lost} packets were lost"),
        };
        println!("{name}: {fault}: {what} {times} times, for {longest_ms} of at most {limit_ms} ms{cut}");
    }
}
