//! Sets that are filled tensor by tensor: every byte once, nothing missing, no trace when it fails.

mod support;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use support::{SOON, adapter, bytes, registry, tiny};
use weighbridge::source::{InMemory, Source};
use weighbridge::{Dtype, Error, Filling, Plan, WeightRegistry};

/// What a source would read into the arena.
fn contents(source: &impl Source) -> Vec<u8> {
    let mut arena = vec![0; source.plan().arena_bytes() as usize];
    source.read_into(&mut arena).unwrap();
    arena
}

fn plan(tensors: &[(&str, usize)]) -> Plan {
    let tensors = tensors
        .iter()
        .map(|&(name, len)| (name, Dtype::U8, vec![len]));
    Plan::of("a test", tensors).unwrap()
}

/// Writes all of `tensor`.
fn write(filling: &Filling, tensor: &str, bytes: &[u8]) {
    filling.writer(tensor).unwrap().write(bytes).unwrap();
}

/// Every tensor of `filling` that has bytes of its own, from `arena`, in pieces of `piece` bytes.
fn write_all(filling: &Filling, arena: &[u8], piece: usize) {
    for tensor in filling.plan().tensors() {
        let Ok(mut writer) = filling.writer(tensor.name()) else {
            continue;
        };
        for part in arena[tensor.range()].chunks(piece) {
            writer.write(part).unwrap();
        }
        assert_eq!(writer.remaining(), 0);
    }
}

#[test]
fn many_threads_fill_one_set_and_every_byte_is_where_it_belongs() {
    const TENSORS: usize = 40;
    const THREADS: usize = 6;
    const PIECE: usize = 97;
    // Lengths of every kind: none, less than a line, lines, pages.
    let len = |tensor: usize| (tensor * tensor * 37) % 9_001;
    let byte = |tensor: usize, at: usize| (tensor * 31 + at * 7) as u8;
    let name = |tensor: usize| format!("t{tensor:02}");
    let registry = registry();
    let tensors = (0..TENSORS).map(|tensor| (name(tensor), Dtype::U8, vec![len(tensor)]));
    let filling = registry
        .fill(Plan::of("trainer", tensors).unwrap(), None)
        .unwrap();
    let (next, written) = (AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                // Every thread works on every tensor, a piece at a time, wherever the last one
                // stopped.
                loop {
                    let tensor = next.fetch_add(1, Ordering::Relaxed) % TENSORS;
                    let mut writer = match filling.writer(&name(tensor)) {
                        Ok(writer) => writer,
                        Err(Error::TensorBusy { .. }) => continue,
                        Err(error) => panic!("{error}"),
                    };
                    let start = len(tensor) - writer.remaining();
                    let end = (start + PIECE).min(len(tensor));
                    let piece: Vec<u8> = (start..end).map(|at| byte(tensor, at)).collect();
                    writer.write(&piece).unwrap();
                    drop(writer);
                    let done = written.fetch_add(piece.len(), Ordering::Relaxed) + piece.len();
                    let all = (0..TENSORS).map(len).sum::<usize>();
                    assert!(done <= all, "a byte was written twice");
                    if written.load(Ordering::Relaxed) == all {
                        return;
                    }
                }
            });
        }
    });
    let set = registry
        .publish_staged("policy", filling.seal().unwrap())
        .unwrap();
    let lease = registry.acquire(set).unwrap();
    for tensor in 0..TENSORS {
        let weight = lease.set(set).unwrap().get(&name(tensor)).unwrap();
        let expected: Vec<u8> = (0..len(tensor)).map(|at| byte(tensor, at)).collect();
        assert_eq!(weight.bytes(), expected, "{}", name(tensor));
    }
}

#[test]
fn a_tensor_has_one_writer_at_a_time_and_the_next_goes_on_where_it_stopped() {
    let registry = registry();
    let filling = registry.fill(plan(&[("a", 6), ("b", 2)]), None).unwrap();
    let mut first = filling.writer("a").unwrap();
    first.write(&[1, 2]).unwrap();
    let busy = filling.writer("a").unwrap_err();
    assert!(busy.is_conflict(), "{busy}");
    assert!(matches!(busy, Error::TensorBusy { tensor } if tensor == "a"));
    write(&filling, "b", &[8, 9]);
    drop(first);
    let mut second = filling.writer("a").unwrap();
    assert_eq!(second.remaining(), 4);
    second.write(&[3]).unwrap();
    // Too long: refused whole, and the place does not move.
    let Err(Error::InvalidTensor { tensor, reason }) = second.write(&[0; 4]) else {
        panic!("more bytes than the tensor has")
    };
    assert_eq!(tensor, "a");
    assert!(
        reason.contains("4 bytes") && reason.contains("3 of 6"),
        "{reason}"
    );
    assert_eq!(second.remaining(), 3);
    second.write(&[]).unwrap();
    second.write(&[4, 5, 6]).unwrap();
    assert!(second.write(&[7]).is_err());
    drop(second);
    let mut done = filling.writer("a").unwrap();
    assert_eq!(done.remaining(), 0);
    assert!(done.write(&[7]).is_err());
    drop(done);
    let set = registry
        .publish_staged("s", filling.seal().unwrap())
        .unwrap();
    let lease = registry.acquire(set).unwrap();
    let set = lease.set(set).unwrap();
    assert_eq!(set.get("a").unwrap().bytes(), [1, 2, 3, 4, 5, 6]);
    assert_eq!(set.get("b").unwrap().bytes(), [8, 9]);
}

#[test]
fn a_writer_that_panics_leaves_its_tensor_to_the_next() {
    let registry = registry();
    let filling = registry.fill(plan(&[("a", 4)]), None).unwrap();
    let fails = || {
        let mut writer = filling.writer("a").unwrap();
        writer.write(&[1, 2]).unwrap();
        panic!("on purpose");
    };
    assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(fails)).is_err());
    let mut writer = filling.writer("a").unwrap();
    assert_eq!(writer.remaining(), 2, "what was written stays");
    writer.write(&[3, 4]).unwrap();
    drop(writer);
    let staged = filling.seal().unwrap();
    let same = InMemory::new().tensor("a", Dtype::U8, [4], [1, 2, 3, 4]);
    let same = registry.stage(same.unwrap()).unwrap();
    assert_eq!(staged.identity(), same.identity());
}

#[test]
fn a_seal_names_what_is_missing_and_gives_the_filling_back() {
    let registry = registry();
    let filling = registry
        .fill(plan(&[("a", 1), ("b", 2), ("none", 0)]), None)
        .unwrap();
    write(&filling, "a", &[1]);
    write(&filling, "b", &[2]);
    assert!(format!("{filling:?}").contains("1 of its 2 bytes"));
    let failed = filling.seal().unwrap_err();
    let Error::InvalidTensor { tensor, .. } = failed.error() else {
        panic!("{failed}")
    };
    assert_eq!(tensor, "b");
    assert!(failed.to_string().contains("1 of its 2 bytes"), "{failed}");
    let filling = failed.into_filling();
    assert!(registry.ledger().reserved > 0, "the filling was lost");
    let failed = filling.seal_declared("step 7").unwrap_err();
    assert!(Error::from(failed).is_malformed());
    assert_eq!(registry.ledger().total(), 0, "dropped with the error");
}

#[test]
fn a_leaked_writer_keeps_its_tensor_and_the_seal_says_so() {
    let registry = registry();
    let filling = registry.fill(plan(&[("a", 1), ("b", 1)]), None).unwrap();
    write(&filling, "a", &[1]);
    let mut writer = filling.writer("b").unwrap();
    writer.write(&[2]).unwrap();
    std::mem::forget(writer);
    assert!(matches!(
        filling.writer("b").unwrap_err(),
        Error::TensorBusy { .. }
    ));
    let failed = filling.seal().unwrap_err();
    assert!(matches!(failed.error(), Error::TensorBusy { tensor } if tensor == "b"));
    drop(failed);
    assert_eq!(registry.ledger().total(), 0);
}

#[test]
fn tensors_that_cannot_be_written_are_refused_by_name() {
    let registry = registry();
    let filling = registry.fill(tiny().plan().clone(), None).unwrap();
    let Err(Error::InvalidTensor { tensor, reason }) = filling.writer("nowhere") else {
        panic!("a tensor that is not there")
    };
    assert_eq!(tensor, "nowhere");
    assert!(reason.contains("no such tensor"), "{reason}");
    // The fixture's head is tied to its embedding.
    let Err(Error::InvalidTensor { tensor, reason }) = filling.writer("lm_head.weight") else {
        panic!("a tie has no bytes of its own")
    };
    assert_eq!(tensor, "lm_head.weight");
    assert!(reason.contains("model.embed_tokens.weight"), "{reason}");
}

#[test]
fn tensors_without_bytes_need_no_writer() {
    let registry = registry();
    let filling = registry.fill(plan(&[("a", 0), ("b", 0)]), None).unwrap();
    let mut writer = filling.writer("a").unwrap();
    assert_eq!(writer.remaining(), 0);
    writer.write(&[]).unwrap();
    assert!(writer.write(&[1]).is_err());
    drop(writer);
    let set = registry
        .publish_staged("s", filling.seal().unwrap())
        .unwrap();
    let lease = registry.acquire(set).unwrap();
    assert!(lease.set(set).unwrap().get("b").unwrap().bytes().is_empty());
    // And a set without any tensor.
    let none = registry.fill(plan(&[]), None).unwrap();
    registry
        .publish_staged("none", none.seal().unwrap())
        .unwrap();
}

#[test]
fn what_was_filled_is_what_would_have_been_loaded() {
    let registry = registry();
    let checkpoint = tiny();
    let arena = contents(&checkpoint);
    let loaded = registry.stage(tiny()).unwrap();
    let filling = registry.fill(checkpoint.plan().clone(), None).unwrap();
    write_all(&filling, &arena, 1_000);
    let filled = filling.seal().unwrap();
    assert_eq!(filled.identity(), loaded.identity());
    assert_eq!(filled.bytes(), loaded.bytes());
    let base = registry.publish_staged("tiny", filled).unwrap();

    // An adapter, on that base.
    let pirate = adapter("pirate-v1", base);
    let arena = contents(&pirate);
    let loaded = registry.stage(adapter("pirate-v1", base)).unwrap();
    let filling = registry.fill(pirate.plan().clone(), Some(base)).unwrap();
    write_all(&filling, &arena, usize::MAX);
    let filled = filling.seal().unwrap();
    assert_eq!(filled.identity(), loaded.identity());
    let pirate = registry.publish_staged("pirate", filled).unwrap();
    let lease = registry.acquire([base, pirate]).unwrap();
    assert_eq!(lease.set(pirate).unwrap().base(), Some(base));
    assert!(lease.set(pirate).unwrap().adapter().is_some());
    assert!(matches!(
        registry.retire(base),
        Err(Error::Dependants { dependants, .. }) if dependants.len() == 1
    ));

    // Vouched for: the identity is the revision, whatever the bytes.
    let filling = registry.fill(plan(&[("w", 4)]), None).unwrap();
    write(&filling, "w", &[5; 4]);
    let filled = filling.seal_declared("step 12").unwrap();
    let declared = registry.stage(bytes(4, 5).declared("step 12")).unwrap();
    assert_eq!(filled.identity(), declared.identity());
}

#[test]
fn adapters_are_refused_before_anything_is_reserved() {
    let registry = registry();
    let base = registry.publish("tiny", tiny()).unwrap();
    let other = registry.publish("other", bytes(4, 1)).unwrap();
    let plan = adapter("pirate-v1", base).plan().clone();
    let pirate = registry
        .publish("pirate", adapter("pirate-v1", base))
        .unwrap();
    let before = registry.ledger();
    let refused = |base| registry.fill(plan.clone(), base).unwrap_err();
    assert!(matches!(refused(None), Error::AdapterWithoutBase { .. }));
    assert!(matches!(
        refused(Some(other)),
        Error::AdapterMismatch { .. }
    ));
    assert!(matches!(refused(Some(pirate)), Error::NotABase { .. }));
    registry.retire(other).unwrap().reclaimed(SOON).unwrap();
    assert!(matches!(refused(Some(other)), Error::StaleHandle { .. }));
    let foreign = support::registry().publish("x", bytes(4, 1)).unwrap();
    assert!(matches!(
        refused(Some(foreign)),
        Error::WrongRegistry { .. }
    ));
    assert_eq!(registry.ledger().reserved, 0);
    assert_eq!(registry.ledger().peak, before.peak);
}

#[test]
fn a_filling_is_charged_from_its_first_moment_and_leaves_no_trace() {
    let registry = WeightRegistry::builder().limit_bytes(128).build().unwrap();
    let filling = registry.fill(plan(&[("w", 128)]), None).unwrap();
    assert_eq!(registry.ledger().reserved, 128);
    let Err(Error::OverLimit { in_use: 128, .. }) = registry.fill(plan(&[("v", 1)]), None) else {
        panic!("two fillings in the room of one")
    };
    write(&filling, "w", &[1; 100]);
    drop(filling);
    assert_eq!(registry.ledger().total(), 0);
    let filling = registry.fill(plan(&[("w", 128)]), None).unwrap();
    write(&filling, "w", &[1; 128]);
    let staged = filling.seal().unwrap();
    assert_eq!(registry.ledger().reserved, 128);
    drop(staged);
    assert_eq!((registry.ledger().total(), registry.stats().sets), (0, 0));
    assert_eq!(
        registry.stats().layouts,
        0,
        "a layout that nobody has is known"
    );
    // A plan that no memory could hold.
    let huge = [("w", Dtype::U8, vec![1usize << 60])];
    let unlimited = WeightRegistry::builder().build().unwrap();
    let refused = unlimited.fill(Plan::of("huge", huge).unwrap(), None);
    assert!(matches!(
        refused.unwrap_err(),
        Error::OutOfMemory { bytes } if bytes == 1 << 60
    ));
    assert_eq!(unlimited.ledger().total(), 0);
}

#[test]
fn a_filling_outlives_its_registry() {
    let registry = registry();
    let filling = registry.fill(plan(&[("w", 4)]), None).unwrap();
    drop(registry);
    write(&filling, "w", &[1; 4]);
    let staged = filling.seal().unwrap();
    let elsewhere = support::registry();
    let failed = elsewhere.publish_staged("w", staged).unwrap_err();
    assert!(matches!(failed.error(), Error::StagedElsewhere { .. }));
}

/// A trainer fills the weights of step N while step N-1 serves; at step N both sets flip together.
#[test]
fn weights_of_the_next_step_are_filled_while_this_one_serves() {
    const STEPS: u8 = 40;
    let registry = registry();
    let fill = |name: &str, step: u8| {
        let filling = registry.fill(plan(&[("a", 64), ("b", 64)]), None).unwrap();
        std::thread::scope(|scope| {
            for tensor in ["a", "b"] {
                let filling = &filling;
                scope.spawn(move || {
                    let mut writer = filling.writer(tensor).unwrap();
                    (0..4).for_each(|_| writer.write(&[step; 16]).unwrap());
                });
            }
        });
        filling.seal_declared(&format!("{name} {step}")).unwrap()
    };
    let sets =
        ["policy", "value"].map(|name| registry.publish_staged(name, fill(name, 0)).unwrap());
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut last = 0;
            while !done.load(Ordering::Relaxed) {
                let lease = registry.acquire(sets).unwrap();
                let mut all = lease
                    .sets()
                    .flat_map(|set| ["a", "b"].map(|tensor| set.get(tensor).unwrap().bytes()));
                let step = all.next().unwrap()[0];
                assert!(step >= last, "time went back");
                assert!(
                    all.all(|bytes| bytes == [step; 64]),
                    "weights of two steps were mixed"
                );
                last = step;
            }
        });
        for step in 1..=STEPS {
            let staged = ["policy", "value"].map(|name| fill(name, step));
            let mut flip = registry.transaction();
            for (set, staged) in sets.into_iter().zip(staged) {
                flip.replace(set, staged).unwrap();
            }
            flip.commit().unwrap();
        }
        done.store(true, Ordering::Relaxed);
    });
    for previous in registry.retired() {
        previous.reclaimed(SOON).unwrap();
    }
    let ledger = registry.ledger();
    assert_eq!((ledger.reserved, ledger.resident), (0, 256));
}
