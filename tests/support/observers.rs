//! A `metrics` recorder and a `tracing` subscriber that remember, and every way to read.
#![allow(dead_code, reason = "each test binary uses some of it")]

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use metrics::{
    Counter, CounterFn, Gauge, GaugeFn, Histogram, HistogramFn, Key, KeyName, Metadata, Recorder,
    SharedString, Unit,
};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::Interest;
use weighbridge::WeightRegistry;

/// What was recorded, by name and labels other than the registry's.
#[derive(Default)]
struct Recorded {
    values: BTreeMap<String, f64>,
    calls: usize,
    panics: bool,
}

#[derive(Clone, Default)]
pub struct Meter(Arc<Mutex<Recorded>>);

struct Cell(Meter, String);

impl Meter {
    pub fn panicking() -> Self {
        let meter = Self::default();
        meter.0.lock().unwrap().panics = true;
        meter
    }

    pub fn calls(&self) -> usize {
        self.0.lock().unwrap().calls
    }

    pub fn value(&self, name: &str) -> Option<f64> {
        self.0.lock().unwrap().values.get(name).copied()
    }

    fn cell(&self, key: &Key) -> Arc<Cell> {
        let mut name = key.name().to_owned();
        for label in key.labels().filter(|label| label.key() != "registry") {
            write!(name, " {}={}", label.key(), label.value()).unwrap();
        }
        let panics = {
            let mut record = self.0.lock().unwrap();
            record.calls += 1;
            record.panics
        };
        assert!(!panics, "a recorder that panics");
        Arc::new(Cell(self.clone(), name))
    }
}

impl Cell {
    fn change(&self, change: impl FnOnce(&mut f64)) {
        let mut record = self.0.0.lock().unwrap();
        record.calls += 1;
        change(record.values.entry(self.1.clone()).or_default());
    }
}

impl CounterFn for Cell {
    fn increment(&self, more: u64) {
        self.change(|value| *value += more as f64);
    }

    fn absolute(&self, total: u64) {
        self.change(|value| *value = total as f64);
    }
}

impl GaugeFn for Cell {
    fn increment(&self, more: f64) {
        self.change(|value| *value += more);
    }

    fn decrement(&self, less: f64) {
        self.change(|value| *value -= less);
    }

    fn set(&self, to: f64) {
        self.change(|value| *value = to);
    }
}

impl HistogramFn for Cell {
    fn record(&self, _: f64) {
        self.change(|samples| *samples += 1.0);
    }
}

impl Recorder for Meter {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        Counter::from_arc(self.cell(key))
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::from_arc(self.cell(key))
    }

    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::from_arc(self.cell(key))
    }
}

/// A subscriber that writes down what it is told: `>` a span begins, `<` it ends, `-` an event.
#[derive(Clone, Default)]
pub struct Diary(Arc<Pages>);

#[derive(Default)]
struct Pages {
    lines: Mutex<Vec<String>>,
    spans: AtomicU64,
    calls: AtomicUsize,
    panics: bool,
}

struct Fields(String);

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        if field.name() != "registry" {
            write!(self.0, " {}={value:?}", field.name()).unwrap();
        }
    }
}

impl Diary {
    pub fn panicking() -> Self {
        Diary(Arc::new(Pages {
            panics: true,
            ..Pages::default()
        }))
    }

    fn note(&self, line: impl Into<String>) {
        self.0.calls.fetch_add(1, Ordering::Relaxed);
        assert!(!self.0.panics, "a subscriber that panics");
        self.0.lines.lock().unwrap().push(line.into());
    }

    pub fn calls(&self) -> usize {
        self.0.calls.load(Ordering::Relaxed)
    }

    pub fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lines.lock().unwrap())
    }
}

impl tracing::Subscriber for Diary {
    fn register_callsite(&self, _: &'static tracing::Metadata<'static>) -> Interest {
        Interest::sometimes()
    }

    fn enabled(&self, about: &tracing::Metadata<'_>) -> bool {
        about.target() == "weighbridge"
    }

    fn new_span(&self, span: &Attributes<'_>) -> Id {
        let mut fields = Fields(format!("> {}", span.metadata().name()));
        span.record(&mut fields);
        let id = self.0.spans.fetch_add(1, Ordering::Relaxed) + 1;
        if !self.0.panics {
            self.note(fields.0);
        }
        Id::from_u64(id)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        let mut fields = Fields("-".to_owned());
        event.record(&mut fields);
        self.note(fields.0);
    }

    fn enter(&self, _: &Id) {
        if self.0.panics {
            self.note("");
        }
    }

    fn exit(&self, _: &Id) {
        self.note("<");
    }

    fn try_close(&self, _: Id) -> bool {
        if self.0.panics {
            self.note("");
        }
        true
    }
}

/// Every way to read, and every end of a lease, also the one that hands the bytes over.
pub fn read_everything(registry: &WeightRegistry) {
    let set = registry.lookup("a").unwrap();
    let weight = registry.weight_handle(set, "w").unwrap();
    let lease = registry.acquire(set).unwrap();
    let labelled = registry.acquire_as("request", set).unwrap();
    lease.weight(weight).unwrap().bytes();
    lease.set(set).unwrap().get("w").unwrap();
    drop((lease.clone(), labelled.clone(), lease, labelled));
    registry.scope(|scope| scope.get(set).map(|_| ())).unwrap();
    let reader = registry.reader();
    drop(reader.acquire(set).unwrap());
    assert_eq!(registry.lookup("nobody"), None);
    assert!(
        registry
            .acquire(set)
            .unwrap()
            .set(set)
            .unwrap()
            .get("x")
            .is_err()
    );
    registry.catalog();
    registry.stats();
}
