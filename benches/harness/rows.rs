//! What times become: medians, ratios, signs.
//!
//! What lives here: [`Row`], and the [`Report`] that measures cells, keeps their rows and prints them.
//! What does not: what is in a cell (`cells`), what the rows of two programs become (`table`).

use serde::{Deserialize, Serialize};

use super::options::{Options, Scale};
use super::targets;
use super::traces::Trace;
use super::turns::{Route, Terms, Times, take_turns};

/// Least and most of all rounds.
#[derive(Serialize, Deserialize, Clone, Copy)]
pub struct Spread {
    /// Of ours.
    pub ours: [f64; 2],
    /// Of the peer.
    pub peer: [f64; 2],
}

/// One of our ways beside one peer.
#[derive(Serialize, Deserialize, Clone)]
pub struct Row {
    /// The kind of cell.
    pub group: String,
    /// The cell.
    pub name: String,
    /// Which of our ways, where there are several.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub way: Option<String>,
    /// How many threads do it at a time.
    pub threads: usize,
    /// How many names, sets or tensors there are.
    pub size: usize,
    /// Median, of one operation.
    pub ours_ns: f64,
    /// Beside whom.
    pub peer: String,
    /// Median, of one operation.
    pub peer_ns: f64,
    /// The peer's over ours: above 1 we are ahead.
    pub ratio: f64,
    /// Of each.
    pub spread: Spread,
    /// How often.
    pub rounds: usize,
    /// In how many rounds ours was faster.
    pub pairs_ahead: usize,
    /// How likely so many or more on one side would be if neither were faster: both sides.
    pub sign_p: f64,
    /// The hasher of the peer's map.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hasher: Option<String>,
    /// The peer is a limit, and no peer.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub limit: bool,
    /// It counts in no mean.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub extra: bool,
    /// What the writers got done beside it, ours and the peer's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub writes_per_second: Option<[f64; 2]>,
    /// What was wanted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// Is it so?
    #[serde(skip_serializing_if = "Option::is_none")]
    pub met: Option<bool>,
    /// If not, why.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

impl Row {
    /// Does it count in means over peers?
    pub fn counts(&self) -> bool {
        !self.limit && !self.extra
    }
}

/// Bytes of one tensor besides its own.
#[derive(Serialize, Deserialize, Clone)]
pub struct Held {
    /// What is held.
    pub name: String,
    /// How many tensors.
    pub tensors: usize,
    /// By whom: nobody is us.
    pub who: String,
    /// Per tensor.
    pub bytes: f64,
    /// What was wanted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// Is it so?
    #[serde(skip_serializing_if = "Option::is_none")]
    pub met: Option<bool>,
    /// If not, why.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

/// What a program has measured.
#[derive(Serialize, Deserialize, Default)]
pub struct Measured {
    /// Rounds of most cells.
    pub rounds: usize,
    /// Times.
    pub rows: Vec<Row>,
    /// Bytes.
    pub memory: Vec<Held>,
}

/// One cell.
pub struct Cell<'c> {
    /// Its kind.
    pub group: &'static str,
    /// What it is, without its kind, its threads and its writer.
    pub what: String,
    /// How many names, sets or tensors there are.
    pub size: usize,
    /// What is asked for.
    pub trace: &'c Trace,
    /// How many threads.
    pub threads: usize,
    /// One more that writes.
    pub writer: bool,
    /// One round takes seconds.
    pub few: bool,
}

impl Cell<'_> {
    /// Its whole name.
    pub fn name(&self) -> String {
        let writer = if self.writer { ", a writer" } else { "" };
        let comma = if self.what.is_empty() { "" } else { ", " };
        format!("{}{comma}{}{writer}", self.group, self.what)
    }
}

/// Measures, and keeps what comes of it.
pub struct Report {
    /// What is wanted.
    pub options: Options,
    measured: Measured,
}

impl Report {
    /// Nothing yet.
    pub fn new(options: Options) -> Self {
        let measured = Measured {
            rounds: options.rounds,
            ..Measured::default()
        };
        Report { options, measured }
    }

    /// How much is measured.
    pub fn scale(&self) -> Scale {
        self.options.scale
    }

    /// Is any cell wanted whose name begins like this? What comes of it is costly to make.
    pub fn wants(&self, names: &[String]) -> bool {
        names.iter().any(|name| self.options.wants(name))
    }

    /// Has ours and the peers take turns, and sets each of ours beside each peer.
    pub fn measure<'r>(
        &mut self,
        cell: &Cell<'_>,
        ours: &mut [Route<'r>],
        peers: &mut [Route<'r>],
    ) {
        let name = cell.name();
        if !self.options.wants(&name) || peers.is_empty() {
            return;
        }
        let terms = Terms {
            threads: cell.threads,
            writer: cell.writer,
            trace: cell.trace,
            time: self.scale().round(),
            rounds: match cell.few {
                true => self.options.few_rounds(),
                false => self.options.rounds,
            },
        };
        let mut routes: Vec<&mut Route<'r>> = ours.iter_mut().chain(peers.iter_mut()).collect();
        let times = take_turns(&mut routes, terms);
        let (of_ours, of_peers) = times.split_at(ours.len());
        println!("\n{name}, {} thread(s)", cell.threads);
        for (our, ours) in ours.iter().zip(of_ours) {
            for (peer, peers) in peers.iter().zip(of_peers) {
                if peer.beside.is_none_or(|way| way == our.name) {
                    let row = row(cell, (our, ours), (peer, peers));
                    print(&row);
                    self.measured.rows.push(row);
                }
            }
        }
    }

    /// Bytes per tensor, by ours (`who` is empty) or a peer.
    pub fn held(&mut self, name: &str, tensors: usize, who: &str, bytes: f64) {
        let mut held = Held {
            name: name.to_owned(),
            tensors,
            who: who.to_owned(),
            bytes,
            target: None,
            met: None,
            why: None,
        };
        targets::judge_held(&mut held);
        let who = if who.is_empty() { "weighbridge" } else { who };
        println!("\n{name}\n  {who}: {bytes:.1} bytes per tensor");
        tell(&held.target, held.met, &held.why);
        self.measured.memory.push(held);
    }

    /// Writes what was measured where the options say.
    ///
    /// # Panics
    /// If that cannot be.
    pub fn write(&self) {
        if let Some(path) = &self.options.json {
            let text = serde_json::to_string_pretty(&self.measured).expect("plain data");
            std::fs::write(path, text + "\n").expect("written");
        }
    }
}

/// Median, least and most.
fn spread(values: &[f64]) -> (f64, [f64; 2]) {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    let count = values.len();
    let median = (values[(count - 1) / 2] + values[count / 2]) / 2.0;
    (median, [values[0], values[count - 1]])
}

fn row(cell: &Cell<'_>, (our, ours): (&Route<'_>, &Times), peer: (&Route<'_>, &Times)) -> Row {
    let (peer, peers) = peer;
    let (ours_ns, of_ours) = spread(&ours.nanos);
    let (peer_ns, of_peer) = spread(&peers.nanos);
    let pairs = || ours.nanos.iter().zip(&peers.nanos);
    let ahead = pairs().filter(|(ours, peer)| ours < peer).count();
    let behind = pairs().filter(|(ours, peer)| ours > peer).count();
    let writes = cell
        .writer
        .then(|| [spread(&ours.writes).0, spread(&peers.writes).0]);
    let mut row = Row {
        group: cell.group.to_owned(),
        name: cell.name(),
        way: (!our.name.is_empty()).then(|| our.name.clone()),
        threads: cell.threads,
        size: cell.size,
        ours_ns,
        peer: peer.name.clone(),
        peer_ns,
        ratio: peer_ns / ours_ns,
        spread: Spread {
            ours: of_ours,
            peer: of_peer,
        },
        rounds: ours.nanos.len(),
        pairs_ahead: ahead,
        sign_p: sign_test(ahead, behind),
        hasher: peer.hasher.map(str::to_owned),
        limit: peer.limit,
        extra: peer.extra,
        writes_per_second: writes,
        target: None,
        met: None,
        why: None,
    };
    targets::judge(&mut row);
    row
}

/// How likely it is that a fair coin falls so unevenly, whichever side is the fuller.
fn sign_test(ahead: usize, behind: usize) -> f64 {
    let pairs = ahead + behind;
    let mut ways = 1.0;
    let mut tail = 0.0;
    for k in 0..=ahead.min(behind) {
        tail += ways;
        ways *= (pairs - k) as f64 / (k + 1) as f64;
    }
    (2.0 * tail / 2f64.powi(pairs as i32)).min(1.0)
}

fn print(row: &Row) {
    let Row {
        ours_ns,
        peer_ns,
        ratio,
        rounds,
        pairs_ahead,
        sign_p,
        spread,
        ..
    } = row;
    let way = row.way.as_deref().unwrap_or("weighbridge");
    let hasher = match row.hasher.as_deref() {
        Some(hasher) if row.extra => format!(" ({hasher})"),
        _ => String::new(),
    };
    let limit = if row.limit { ", a limit" } else { "" };
    println!(
        "  {ratio:>7.2}x  {way} {} beside {}{hasher}{limit} {}; ahead in {pairs_ahead} of {rounds}, p {sign_p:.3}",
        times(*ours_ns, spread.ours),
        row.peer,
        times(*peer_ns, spread.peer),
    );
    if let Some([ours, peer]) = row.writes_per_second {
        println!("            writes per second: {ours:.0} beside {peer:.0}");
    }
    tell(&row.target, row.met, &row.why);
}

fn times(median: f64, [least, most]: [f64; 2]) -> String {
    let (unit, one) = match median {
        1e6.. => ("ms", 1e6),
        1e4.. => ("us", 1e3),
        _ => ("ns", 1.0),
    };
    let [median, least, most] = [median, least, most].map(|time| time / one);
    format!("{median:.1} {unit} ({least:.1} - {most:.1})")
}

fn tell(target: &Option<String>, met: Option<bool>, why: &Option<String>) {
    if let (Some(target), Some(met)) = (target, met) {
        let met = if met { "met" } else { "MISSED" };
        println!(
            "            wanted {target}: {met} {}",
            why.as_deref().unwrap_or("")
        );
    }
}
