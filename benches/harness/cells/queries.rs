//! Questions about all of it: how many bytes, which adapters, which tensors of one.
//!
//! What lives here: the flat registry with more and more tensors, and as many adapters. What does not: how
//! it got them (`register`).

use std::hint::black_box;
use std::sync::Arc;

use weighbridge::Dtype;
use weighbridge::flat::{Address, FlatRegistry};

use super::super::rows::{Cell, Report};
use super::super::traces::Trace;
use super::super::turns::Route;
use super::{Contenders, registry};

const GROUP: &str = "queries";
/// So many adapters there are, however many tensors; what more there is are the base's.
pub const ADAPTERS: usize = 100;
/// Tensors of each.
pub const OF_EACH: usize = 8;
const PAYLOAD: [u8; 16] = [7; 16];

/// What is asked.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Question {
    /// Bytes of everything.
    TotalBytes,
    /// Handles of one adapter's tensors.
    AdapterHandles,
    /// Names of all adapters.
    AdapterNames,
}

impl Question {
    const ALL: [Question; 3] = [
        Question::TotalBytes,
        Question::AdapterHandles,
        Question::AdapterNames,
    ];

    fn name(self) -> &'static str {
        match self {
            Question::TotalBytes => "total_bytes",
            Question::AdapterHandles => "adapter_handles",
            Question::AdapterNames => "adapter_names",
        }
    }

    /// The adapter, if any, and the name of tensor `index`.
    pub fn tensor(index: usize) -> (Option<String>, String) {
        let adapter = index / OF_EACH;
        match adapter < ADAPTERS {
            true => (
                Some(Self::adapter(adapter)),
                format!("lora.{}", index % OF_EACH),
            ),
            false => (None, format!("model.{index}.weight")),
        }
    }

    /// The name of an adapter.
    pub fn adapter(index: usize) -> String {
        format!("adapter-{index:03}")
    }
}

pub(super) fn run(report: &mut Report, contenders: &dyn Contenders) {
    let most = report.scale().of(1_000_000, 20_000, 1_000);
    let mut counts = vec![1_000, 10_000, 100_000, 500_000, 1_000_000];
    counts.retain(|&count| count <= most);
    let what = |question: Question, count| format!("{}, {count} tensors", question.name());
    let all = Question::ALL.map(|question| counts.iter().map(move |&it| what(question, it)));
    let all: Vec<String> = all.into_iter().flatten().collect();
    if !report.wants(
        &all.iter()
            .map(|it| format!("{GROUP}, {it}"))
            .collect::<Vec<_>>(),
    ) {
        return;
    }
    let least = flat(counts[0]);
    let trace = Trace::of_one(1 << 12);
    for &count in &counts {
        let of_count = if count == counts[0] {
            Arc::clone(&least)
        } else {
            flat(count)
        };
        let contenders = contenders.queries(count);
        for question in Question::ALL {
            let mut peers: Vec<_> = contenders.iter().map(|ask| ask(question)).collect();
            if peers.is_empty() {
                let itself = format!("itself, {} tensors", counts[0]);
                peers.push(asking(itself, &least, question).limit());
            }
            let cell = Cell {
                group: GROUP,
                what: what(question, count),
                size: count,
                trace: &trace,
                threads: 1,
                writer: false,
                few: false,
            };
            let mut ours = [asking(String::new(), &of_count, question)];
            report.measure(&cell, &mut ours, &mut peers);
        }
    }
}

fn flat(tensors: usize) -> Arc<FlatRegistry> {
    let flat = FlatRegistry::new(registry().into());
    let names: Vec<_> = (0..tensors).map(Question::tensor).collect();
    let weights = names.iter().map(|(adapter, name)| {
        let address = match adapter {
            Some(adapter) => Address::from((adapter.as_str(), name.as_str())),
            None => Address::from(name),
        };
        (address, Dtype::U8, &[16][..], &PAYLOAD[..])
    });
    flat.register_all(weights).expect("registered");
    Arc::new(flat)
}

fn asking(name: String, flat: &Arc<FlatRegistry>, question: Question) -> Route<'static> {
    let flat = Arc::clone(flat);
    Route::new(name, move |turn| match question {
        Question::TotalBytes => turn.each(|_| {
            black_box(flat.total_bytes());
        }),
        Question::AdapterHandles => {
            let adapter = Question::adapter(ADAPTERS / 2);
            assert_eq!(flat.adapter_handles(&adapter).len(), OF_EACH);
            turn.each(|_| {
                black_box(flat.adapter_handles(&adapter));
            });
        }
        Question::AdapterNames => turn.each(|_| {
            black_box(flat.adapter_names());
        }),
    })
    .batch(16)
}
