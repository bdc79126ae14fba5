//! All rows of a run in one file, with where they are from and what they come to.
//!
//! What lives here: `latest.json`, its summary and the printed form of that. What does not: the rows (the
//! library), the plots (`plots`).

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;
use weighbridge_benches::harness::options::Options;
use weighbridge_benches::harness::rows::{Held, Measured, Row};
use weighbridge_benches::harness::turns::cores;

/// What the seed's peers are called begins like this.
pub const SEED: &str = "rlx-runtime";

/// A row, in few words.
#[derive(Serialize, Clone)]
pub struct Pick {
    /// The cell.
    pub name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub way: Option<String>,
    pub threads: usize,
    pub peer: String,
    pub ratio: f64,
}

/// One of our ways of one group beside one peer, over all cells.
#[derive(Serialize)]
pub struct Mean {
    pub group: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub way: Option<String>,
    pub peer: String,
    pub cells: usize,
    /// Of the ratios.
    pub geometric_mean: f64,
    /// In how many cells the ratio is above 1.
    pub ahead: usize,
    pub worst: Pick,
}

/// What all rows come to. Limits, and rows that are extra, are not in it.
#[derive(Serialize)]
pub struct Summary {
    /// All lookups beside the usual peers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lookups: Option<Mean>,
    pub groups: Vec<Mean>,
    pub targets_met: usize,
    pub targets_missed: Vec<String>,
}

/// The file.
#[derive(Serialize)]
pub struct All {
    pub machine: BTreeMap<&'static str, String>,
    #[serde(flatten)]
    pub facts: BTreeMap<String, String>,
    pub rounds: usize,
    pub summary: Summary,
    pub rows: Vec<Row>,
    pub memory: Vec<Held>,
}

impl All {
    /// The files that are to be merged.
    ///
    /// # Panics
    /// If one is not there, or has something else.
    pub fn of(options: &Options) -> Self {
        let mut all = Measured::default();
        for path in &options.merge {
            let text = std::fs::read_to_string(path).expect("a file of rows");
            let more: Measured = serde_json::from_str(&text).expect("rows");
            all.rounds = all.rounds.max(more.rounds);
            all.rows.extend(more.rows);
            for held in more.memory {
                // Both programs say what ours holds.
                let same = |it: &Held| (&it.name, &it.who) == (&held.name, &held.who);
                if !all.memory.iter().any(same) {
                    all.memory.push(held);
                }
            }
        }
        All {
            machine: machine(),
            facts: options.facts.iter().cloned().collect(),
            rounds: all.rounds,
            summary: Summary::of(&all),
            rows: all.rows,
            memory: all.memory,
        }
    }

    /// Writes `latest.json`.
    ///
    /// # Panics
    /// If that cannot be.
    pub fn write(&self, out: &Path) {
        std::fs::create_dir_all(out).expect("a directory");
        let text = serde_json::to_string_pretty(self).expect("plain data");
        std::fs::write(out.join("latest.json"), text + "\n").expect("written");
    }

    /// The summary as text.
    pub fn print(&self) {
        println!("\n{} rows", self.rows.len());
        println!(
            "\nThe peer's time over ours, geometric mean over the cells; above 1 we are ahead:"
        );
        for mean in &self.summary.groups {
            mean.print();
        }
        if let Some(lookups) = &self.summary.lookups {
            println!("\nAll lookups:");
            lookups.print();
        }
        println!("\nBytes per tensor besides its own:");
        for held in &self.memory {
            let who = if held.who.is_empty() {
                "weighbridge"
            } else {
                &held.who
            };
            println!("  {:>7.1}  {who}: {}", held.bytes, held.name);
        }
        println!("\nTargets met: {}", self.summary.targets_met);
        for missed in &self.summary.targets_missed {
            println!("Target missed: {missed}");
        }
    }
}

impl Mean {
    fn of(group: &str, way: Option<&str>, peer: &str, rows: &[&Row]) -> Self {
        let logs: f64 = rows.iter().map(|row| row.ratio.ln()).sum();
        let worst = rows.iter().min_by(|a, b| a.ratio.total_cmp(&b.ratio));
        Mean {
            group: group.to_owned(),
            way: way.map(str::to_owned),
            peer: peer.to_owned(),
            cells: rows.len(),
            geometric_mean: (logs / rows.len() as f64).exp(),
            ahead: rows.iter().filter(|row| row.ratio > 1.0).count(),
            worst: pick(worst.expect("at least one row")),
        }
    }

    fn print(&self) {
        let Mean { worst, .. } = self;
        let way = self.way.as_ref().map(|way| format!(", {way}"));
        println!(
            "  {:>7.2}x  {}{} beside {}: ahead in {} of {}; worst {:.2}x, beside {} in {}, {} thread(s)",
            self.geometric_mean,
            self.group,
            way.unwrap_or_default(),
            self.peer,
            self.ahead,
            self.cells,
            worst.ratio,
            worst.peer,
            worst.name,
            worst.threads
        );
    }
}

fn pick(row: &Row) -> Pick {
    Pick {
        name: row.name.clone(),
        way: row.way.clone(),
        threads: row.threads,
        peer: row.peer.clone(),
        ratio: row.ratio,
    }
}

impl Summary {
    fn of(all: &Measured) -> Self {
        let counted: Vec<&Row> = all.rows.iter().filter(|row| row.counts()).collect();
        let mut keys = Vec::new();
        for row in &counted {
            let key = (&*row.group, row.way.as_deref(), &*row.peer);
            if !keys.contains(&key) {
                keys.push(key);
            }
        }
        // Groups and ways in the order in which they were measured, the seed's peers with the others.
        let first = |group, way| keys.iter().position(|it| (it.0, it.1) == (group, way));
        let mut sorted = keys.clone();
        sorted.sort_by_key(|&(group, way, _)| first(group, way));
        let groups = sorted
            .into_iter()
            .map(|(group, way, peer)| {
                let of = |row: &&Row| {
                    (&*row.group, row.way.as_deref(), &*row.peer) == (group, way, peer)
                };
                let rows: Vec<&Row> = counted.iter().copied().filter(of).collect();
                Mean::of(group, way, peer, &rows)
            })
            .collect();
        let lookups: Vec<&Row> = counted
            .iter()
            .copied()
            .filter(|row| row.group == "lookup" && !row.peer.starts_with(SEED))
            .collect();
        let lookups =
            (!lookups.is_empty()).then(|| Mean::of("lookup", None, "the usual peers", &lookups));
        let of_rows = all.rows.iter().map(|row| {
            let way = row
                .way
                .as_ref()
                .map(|way| format!(", {way}"))
                .unwrap_or_default();
            let what = format!(
                "{}{way}, {} thread(s), beside {}",
                row.name, row.threads, row.peer
            );
            (row.met, what, &row.target, &row.why)
        });
        let of_memory = all
            .memory
            .iter()
            .map(|it| (it.met, it.name.clone(), &it.target, &it.why));
        let judged: Vec<_> = of_rows.chain(of_memory).collect();
        let missed = judged.iter().filter(|(met, ..)| *met == Some(false));
        Summary {
            lookups,
            groups,
            targets_met: judged.iter().filter(|(met, ..)| *met == Some(true)).count(),
            targets_missed: missed
                .map(|(_, what, target, why)| {
                    let why = why.as_ref().map(|why| format!(" {why}"));
                    let target = target.as_deref().unwrap_or_default();
                    format!("{what}: {target} was wanted.{}", why.unwrap_or_default())
                })
                .collect(),
        }
    }
}

fn machine() -> BTreeMap<&'static str, String> {
    let value = |path: &str, name: &str| {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let line = text.lines().find(|line| line.starts_with(name));
        let value = line.and_then(|line| line.split_once(':'));
        value
            .map_or("unknown", |(_, value)| value.trim())
            .to_owned()
    };
    BTreeMap::from([
        ("cpu", value("/proc/cpuinfo", "model name")),
        ("cores", cores().to_string()),
        ("memory", value("/proc/meminfo", "MemTotal")),
    ])
}
