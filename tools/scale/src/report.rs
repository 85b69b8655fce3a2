//! The results as tables for people.
use std::fmt::Write as _;

use overlay_user::agent::reconciler::longest_pause;

use crate::{
    forecast::{idle_mean, idle_percent, seldom_percent, signs_of_life},
    results::{Churn, Outcome, Results, Times},
    scenarios::{IDLE, RESTART},
};

/// Numbers of hosts that nobody has run here.
const BEYOND: [u32; 2] = [10_000, 100_000];

/// The whole report.
pub(crate) fn markdown(results: &Results) -> String {
    let mut text = format!(
        "# `cargo xtask scale`{}\n\n{}. All hosts are loops in one process, beside etcd on the same machine. Times are counted from \
         the moment at which something happens (a restarted etcd: at which it is started, and its own start takes a part of them) until \
         hosts follow and have every other host as their peer. Requests are those for each host concerned: of the tenth that is cut \
         off, of those whose member is restarted, and of all otherwise.\n\n",
        if results.quick { " --quick" } else { "" },
        results.machine,
    );
    text.push_str(
        "| members | hosts | what happens | half, s | 99 of 100, s | all, s | etcd's CPU, s | etcd's memory, MiB | requests per host | \
         MB sent | events | hosts' CPU, s | hosts' memory, MiB | routes lost |\n|---|---|---|---|---|---|---|---|---|---|---|---|---|---|\n",
    );
    for outcome in &results.outcomes {
        row(&mut text, outcome);
    }
    for outcome in &results.outcomes {
        if let Some(Churn { changes, late }) = outcome.churn {
            let _ = writeln!(
                text,
                "\n{}: {changes} with {} hosts; {late} of them later than planned, because not all agreed before.",
                outcome.scenario, outcome.hosts
            );
        }
    }
    // What few hosts did in a second says nothing of many.
    if !results.quick {
        idle(&mut text, results);
        forecasts(&mut text, results);
    }
    text
}

fn row(text: &mut String, outcome: &Outcome) {
    let times = outcome.times.map_or_else(
        || format!("(in {:.0} s) | | ", outcome.cost.seconds),
        |Times { p50, p99, all }| format!("{p50:.2} | {p99:.2} | {all:.2}"),
    );
    let _ = writeln!(
        text,
        "| {} | {} | {} | {times} | {:.2} | {:.0} | {:.2} | {:.1} | {:.0} | {:.1} | {} | {} |",
        outcome.members,
        outcome.hosts,
        outcome.scenario,
        outcome.cost.etcd_cpu_s,
        outcome.cost.etcd_mib,
        outcome.requests_per_host(),
        outcome.cost.sent_mb,
        outcome.cost.events,
        outcome.cost.hosts_cpu_s,
        outcome.cost.hosts_mib.map_or("-".to_owned(), |mib| format!("{mib:.0}")),
        outcome.lost_routes
    );
}

/// What etcd needs while nothing happens.
fn idle(text: &mut String, results: &Results) {
    let _ = write!(
        text,
        "\n## While nothing happens\n\nAn etcd of one member without any client: {:.2} % of a core. What one request costs it, with {} \
         leases: ",
        100.0 * results.alone_cpu,
        results.requests.first().map_or(0, |request| request.leases)
    );
    let each =
        results.requests.iter().map(|request| format!("{} {:.2} ms", request.name, 1e3 * request.cpu_s));
    let _ = writeln!(text, "{}.\n", each.collect::<Vec<_>>().join("; "));
    text.push_str(
        "| hosts | requests a second | signs of life a second, by the schedule | measured, % of a core | reckoned: what is asked \
         seldom, % of a core |\n|---|---|---|---|---|\n",
    );
    let seldom =
        |hosts: f64| seldom_percent(results, hosts).map_or("-".to_owned(), |cpu| format!("{cpu:.2}"));
    for outcome in results.of(1, IDLE) {
        let hosts = outcome.hosts;
        let _ = writeln!(
            text,
            "| {hosts} | {:.1} | {:.1} | {:.2} | {} |",
            outcome.cost.requests / outcome.cost.seconds,
            signs_of_life(hosts),
            idle_percent(outcome),
            seldom(hosts as f64)
        );
    }
    let mean = idle_mean(results).map_or("-".to_owned(), |cpu| format!("{cpu:.2} (mean of the measured)"));
    for hosts in BEYOND {
        let _ = writeln!(
            text,
            "| {hosts} | - | {:.1} | {mean} | {} |",
            signs_of_life(hosts as usize),
            seldom(f64::from(hosts))
        );
    }
}

fn forecasts(text: &mut String, results: &Results) {
    text.push_str(
        "\n## Straight lines, and what they give\n\nThe last two columns are extrapolated: nobody has run so many hosts here. A \"-\" \
         says that the slope cannot be told from zero, with a probability of 95 %.\n\n\
         | one member | line | standard error of the slope | 10,000 hosts | 100,000 hosts |\n|---|---|---|---|---|\n",
    );
    for forecast in &results.forecasts {
        let by = if forecast.squared { "hosts²" } else { "hosts" };
        let [ten, hundred] = BEYOND.map(|hosts| or_dash(forecast.at(f64::from(hosts))));
        let _ = writeln!(
            text,
            "| {}{} | {} + {} x {by} | {} | {} | {} |",
            forecast.name,
            if forecast.unit.is_empty() { String::new() } else { format!(", {}", forecast.unit) },
            short(forecast.line.base),
            short(forecast.line.slope),
            or_dash(forecast.line.error),
            ten,
            hundred
        );
    }
    text.push_str(
        "\nThere is no line for the time after which all hosts follow a restarted etcd. Its largest part is the pause between tries, \
         which each host draws below a limit, and this grows with the number of hosts between two others:",
    );
    let measured = results.of(1, RESTART).map(|outcome| outcome.hosts);
    let pauses = measured
        .chain(BEYOND.map(|hosts| hosts as usize))
        .map(|hosts| format!(" {} s with {hosts} hosts", short(longest_pause(hosts).as_secs_f64())));
    let _ = writeln!(text, "{}.", pauses.collect::<Vec<_>>().join(","));
}

fn or_dash(number: Option<f64>) -> String {
    number.map_or("-".to_owned(), short)
}

/// Three digits, whatever the size.
fn short(number: f64) -> String {
    let size = number.abs();
    if size >= 100.0 {
        format!("{number:.0}")
    } else if size >= 0.1 || size == 0.0 {
        format!("{number:.2}")
    } else {
        format!("{number:.2e}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_the_digits_that_count() {
        for (number, text) in
            [(0.0, "0.00"), (1234.5, "1234"), (12.345, "12.35"), (0.000_123_4, "1.23e-4"), (-2.0, "-2.00")]
        {
            assert_eq!(short(number), text);
        }
    }
}
