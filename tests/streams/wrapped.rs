//! Streamed sets in wrappers, in swaps, and in memory that was somebody else's.

use std::sync::{Arc, Mutex};

use weighbridge::source::{Pieces, Reload, Source, Streamed, WithProgress};
use weighbridge::{Dtype, Error, Order, Parts, Plan, WeightRegistry, WindowSize};

use super::layers::{Disk, LAYER, Layers, check, registry};
use super::support::{SOON, tiny};

/// A wrapper that forwards some of it only.
struct Forwards<S>(S, bool, bool);

impl<S: Source> Source for Forwards<S> {
    fn plan(&self) -> &Plan {
        self.0.plan()
    }

    fn read_into(&self, arena: &mut [u8]) -> Result<(), Error> {
        self.0.read_into(arena)
    }

    fn pieces(&self) -> Option<Pieces<'_>> {
        self.0.pieces().filter(|_| self.1)
    }

    fn reload(&self) -> Option<Arc<dyn Reload>> {
        self.0.reload().filter(|_| self.2)
    }

    fn declared(&self) -> Option<&str> {
        self.0.declared()
    }
}

/// What a wrapper forgets is found before anything is read, or given up.
#[test]
fn a_wrapper_that_forgets_something_is_refused_at_once() {
    let disk = Arc::new(Disk::default());
    let streamed = || Layers::new(4, 2, &disk).streamed(2);
    let charged = streamed().plan().charged_bytes();
    let registry = WeightRegistry::builder()
        .limit_bytes(charged)
        .build()
        .unwrap();
    let registry = Arc::new(registry);
    let set = registry
        .publish("layers", Layers::new(4, 1, &disk).streamed(2))
        .unwrap();
    for (pieces, reload) in [(false, true), (true, false)] {
        let wrapped = Forwards(streamed(), pieces, reload);
        let refused = registry
            .stage(Forwards(streamed(), pieces, reload))
            .unwrap_err();
        assert!(matches!(refused, Error::InvalidParts { .. }), "{refused}");
        // Both do not fit, so a drained swap would give up the one that is there.
        let refused = registry.replace_drained(set, wrapped, SOON).unwrap_err();
        assert!(
            matches!(refused.error(), Error::InvalidParts { .. }),
            "{refused}"
        );
    }
    assert_eq!(registry.ledger().total(), charged);
    let lease = registry.acquire(set).unwrap();
    let mut stream = registry.stream(&lease, set, Order::forward()).unwrap();
    check(&stream.part(3, SOON).unwrap(), 3, 1);
    drop((stream, lease));

    // One that forgets nothing takes the memory over.
    registry
        .replace_drained(set, Forwards(streamed(), true, true), SOON)
        .unwrap();
    assert_eq!(
        (registry.ledger().total(), registry.ledger().peak),
        (charged, charged)
    );
    let lease = registry.acquire(set).unwrap();
    let mut stream = registry.stream(&lease, set, Order::forward()).unwrap();
    for layer in 0..4 {
        check(&stream.part(layer, SOON).unwrap(), layer, 2);
    }
}

/// Progress of what is hashed goes from nothing to all; of what is not, to what stays, and then part by part.
#[test]
fn progress_of_a_streamed_set() {
    for hashed in [true, false] {
        let (registry, disk) = (registry(), Arc::new(Disk::default()));
        let told = Arc::new(Mutex::new(Vec::new()));
        let tells = Arc::clone(&told);
        let layers = Layers::new(4, 1, &disk);
        let layers = if hashed { layers.hashed() } else { layers };
        let source = WithProgress::new(layers, move |progress| {
            tells.lock().unwrap().push(progress.bytes)
        });
        let source = Streamed::new(source, &Parts::layers(), WindowSize::Parts(2)).unwrap();
        let set = registry.publish("layers", source).unwrap();
        let embed = LAYER / 2;
        let published = if hashed { embed + 4 * LAYER } else { embed };
        assert_eq!(std::mem::take(&mut *told.lock().unwrap()), [published]);
        let lease = registry.acquire(set).unwrap();
        let mut stream = registry.stream(&lease, set, Order::unknown()).unwrap();
        check(&stream.part(2, SOON).unwrap(), 2, 1);
        assert_eq!(*told.lock().unwrap(), [LAYER]);
    }
}

#[test]
fn a_source_that_panics_is_a_read_that_failed() {
    let (registry, disk) = (registry(), Arc::new(Disk::default()));
    let set = registry
        .publish("layers", Layers::new(4, 1, &disk).streamed(2))
        .unwrap();
    let lease = registry.acquire(set).unwrap();
    disk.panics.lock().unwrap().extend([1, 3]);
    for ahead in [0, 2] {
        let mut stream = registry
            .stream(&lease, set, Order::ring().ahead(ahead))
            .unwrap();
        let mut broken = 0;
        for layer in (0..4).cycle().take(12) {
            match stream.part(layer, SOON) {
                Ok(part) => check(&part, layer, 1),
                Err(Error::PartFailed { cause, .. }) => {
                    assert!(matches!(&*cause, Error::LoadBroken { .. }), "{cause}");
                    broken += 1;
                }
                Err(error) => panic!("{error}"),
            }
        }
        assert_eq!(broken, 6);
    }
    disk.panics.lock().unwrap().clear();
    let mut stream = registry.stream(&lease, set, Order::unknown()).unwrap();
    // A failure that nobody was told is told once.
    let told = (0..4)
        .filter(|layer| stream.part(*layer, SOON).is_err())
        .count();
    assert!(told <= 2);
    for layer in 0..4 {
        check(&stream.part(layer, SOON).unwrap(), layer, 1);
    }
}

/// Memory that was another set's, or the last generation's: of neither is anything left, and protecting memory leaves out
/// what is written again and again.
#[test]
fn memory_that_is_used_again() {
    let builder = WeightRegistry::builder()
        .pool_bytes(u64::MAX)
        .write_protect(true);
    let registry = Arc::new(builder.build().unwrap());
    let names = (0..8).map(|layer| format!("layers.{layer}.w"));
    let tensors: Vec<_> = names.map(|name| (name, Dtype::U8, vec![1 << 20])).collect();
    let disk = Arc::new(Disk::default());
    for version in 1..4 {
        let source = Layers::of(&tensors, version, &disk).streamed(3);
        let set = registry.publish("layers", source).unwrap();
        let lease = registry.acquire(set).unwrap();
        let mut stream = registry.stream(&lease, set, Order::ring()).unwrap();
        for layer in (0..8).cycle().take(16) {
            let part = stream.part(layer, SOON).unwrap();
            let weight = part.iter().next().unwrap().unwrap();
            let right =
                |(at, there): (u64, &u8)| *there == super::layers::byte(weight.name(), at, version);
            assert!((0..).zip(weight.bytes()).all(right));
        }
        drop((stream, lease));
        registry.retire(set).unwrap().reclaimed(SOON).unwrap();
        assert_eq!(registry.ledger().pooled, registry.ledger().total());
    }
    assert_eq!(
        registry.ledger().peak,
        registry.ledger().pooled,
        "it was the same memory"
    );
}

/// Handles are by name, whatever the order of tensors and parts in a later generation.
#[test]
fn handles_survive_a_replace_with_other_parts() {
    let registry = registry();
    let set = registry.publish("tiny", tiny()).unwrap();
    let name = "model.layers.2.mlp.up_proj.weight";
    let handle = registry.weight_handle(set, name).unwrap();
    let plain = registry.acquire(set).unwrap();
    let by_kind = Parts::by(|name| name.contains("mlp").then(|| "all of mlp".to_owned()));
    for parts in [Parts::layers(), by_kind, Parts::layers().and_the_rest()] {
        let next = Streamed::new(tiny(), &parts, WindowSize::Parts(2)).unwrap();
        registry.replace(set, next).unwrap();
        let lease = registry.acquire(set).unwrap();
        let mut stream = registry.stream(&lease, set, Order::forward()).unwrap();
        let is_in = stream.part_of(handle).unwrap();
        let mut found = 0;
        for part in 0..stream.len() {
            let part = stream.part(part, SOON).unwrap();
            match part.weight(handle) {
                Ok(weight) => {
                    assert!(weight.bytes() == plain.weight(handle).unwrap().bytes());
                    assert_eq!(is_in, Some(part.index()));
                    found += 1;
                }
                Err(error) => assert!(matches!(error, Error::InPart { .. }), "{error}"),
            }
        }
        assert_eq!(found, 1);
        let norm = registry.weight_handle(set, "model.norm.weight").unwrap();
        let rest = (stream.name(stream.len() - 1) == Some("rest")).then(|| stream.len() - 1);
        assert_eq!(stream.part_of(norm).unwrap(), rest);
    }
}
