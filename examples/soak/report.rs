//! What people read.

use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::meeting::{Count, Sample};
use crate::slope::{Verdict, slope};
use crate::world::{LIMIT, World};

/// The most that the live bytes may grow.
const MOST_PER_HOUR: f64 = 1024.0 * 1024.0;

/// A meeting: when, what was there, and, if everything was let go, the memory.
#[derive(Debug, Clone, Copy)]
pub struct Point {
    pub at: Duration,
    pub count: Count,
    pub sample: Option<Sample>,
}

fn refusals(world: &World) -> u64 {
    world.refusals().values().sum()
}

pub fn head() {
    println!(
        "at each meeting: operations so far, refusals so far; then leases (and those at fences) that are\n\
         held, sets, their bytes in the ledger; then, if all was let go: live bytes and allocations, RSS\n"
    );
}

pub fn line(world: &World, point: &Point) {
    let Count {
        leases,
        fenced,
        sets,
        ledger,
        pooled: _,
        blind,
    } = point.count;
    let memory = match point.sample {
        None => String::new(),
        Some(sample) => format!(
            "  live {:>8} B in {:>6}  RSS {:>6} KiB",
            sample.live,
            sample.blocks,
            sample.resident.unwrap_or(0) >> 10
        ),
    };
    println!(
        "{:>7.1} s {:>10} ops {:>9} refused {:>4}+{:<3} leases {:>3} sets {:>5} of {} KiB{memory}{}",
        point.at.as_secs_f64(),
        world.counts.operations.load(Ordering::Relaxed),
        refusals(world),
        leases,
        fenced,
        sets,
        ledger >> 10,
        LIMIT >> 10,
        if blind { "  (events missed)" } else { "" },
    );
}

/// The samples after the warm-up, in hours.
fn series(points: &[Point], of: impl Fn(&Sample) -> Option<f64>) -> Vec<(f64, f64)> {
    let last = points.last().map_or(Duration::ZERO, |point| point.at);
    let warm = points.iter().filter(|point| point.at >= last / 10);
    warm.filter_map(|point| {
        let value = of(point.sample.as_ref()?)?;
        Some((point.at.as_secs_f64() / 3600.0, value))
    })
    .collect()
}

fn growth(name: &str, unit: f64, unit_name: &str, samples: &[(f64, f64)]) -> (String, Verdict) {
    let Some(slope) = slope(samples) else {
        let text = format!(
            "{name}: {} samples after the warm-up say nothing",
            samples.len()
        );
        return (text, Verdict::CannotTell);
    };
    let [low, middle, high] = [slope.low, slope.slope, slope.high].map(|it| it / unit);
    let text = format!(
        "{name}: {middle:+.1} {unit_name} per hour (95 of 100: {low:+.1} to {high:+.1}), from {} samples",
        samples.len()
    );
    (text, slope.against(MOST_PER_HOUR))
}

/// The figures of the whole run; what they say of the growth.
pub fn figures(world: &World, points: &[Point]) -> Verdict {
    let count = |of: &std::sync::atomic::AtomicU64| of.load(Ordering::Relaxed);
    let counts = &world.counts;
    println!("\nrefused, as it must be now and then:");
    for (kind, times) in world.refusals() {
        println!("  {times:>9}  {kind}");
    }
    println!(
        "\n{} operations, {} leases looked at, {} commits seen by their threads, {} threads' lives, \
         {} events ({} gaps of slow subscribers)",
        count(&counts.operations),
        count(&counts.reads),
        count(&counts.commits),
        count(&counts.lives),
        count(&counts.events),
        count(&counts.gaps),
    );
    let compared = points.iter().filter(|point| !point.count.blind).count();
    println!("{} meetings, {compared} with every event", points.len());
    let pooled = points.iter().filter(|point| point.count.pooled > 0).count();
    println!(
        "{} streams' parts read, {pooled} meetings with memory in the pool",
        world.streamed.stats().part_reads
    );
    let (live, verdict) = growth(
        "live bytes",
        1024.0,
        "KiB",
        &series(points, |it| Some(it.live as f64)),
    );
    let (blocks, _) = growth(
        "live allocations",
        1.0,
        "",
        &series(points, |it| Some(it.blocks as f64)),
    );
    let (resident, _) = growth(
        "RSS",
        1024.0,
        "KiB",
        &series(points, |it| it.resident.map(|it| it as f64)),
    );
    println!(
        "{live}\n{blocks}\n{resident}\n\
         (RSS is not judged: it is what the allocator keeps, and goes on settling for minutes; \
         live bytes are all that was asked for and not given back.)\n"
    );
    verdict
}

/// The end; whether every check passed.
pub fn verdict(
    (failed, first): &(u64, Vec<String>),
    points: &[Point],
    growth: Verdict,
    leftover: &[String],
) -> bool {
    let compared = points.iter().filter(|point| !point.count.blind).count();
    for one in first.iter().chain(leftover) {
        println!("  WRONG: {one}");
    }
    let told = match growth {
        Verdict::Below => "below 1 MiB per hour",
        Verdict::Above => "MORE than 1 MiB per hour",
        Verdict::CannotTell => "not judged, the run was too short",
    };
    let checks = [
        (
            format!("{failed} reads, sums and waits were wrong"),
            *failed == 0,
        ),
        (
            format!("the copy made of events was compared at {compared} meetings"),
            compared > 0,
        ),
        (
            format!("growth of live bytes: {told}"),
            growth != Verdict::Above,
        ),
        (
            "threads, files and events as at the start".to_owned(),
            leftover.is_empty(),
        ),
    ];
    for (what, passed) in &checks {
        println!("{}  {what}", if *passed { "PASS" } else { "FAIL" });
    }
    checks.iter().all(|(_, passed)| *passed)
}
