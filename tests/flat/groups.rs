//! Slices of an adapter: paired, sealed, refused.

use super::*;

/// What is sealed is what was paired: a slice that was replaced since does not go for it.
#[test]
fn a_slice_that_was_replaced_is_not_sealed() {
    let flat = flat();
    let core = flat.registry();
    let small = InMemory::new().tensor("p.weight", Dtype::U8, [2, 3], [0; 6]);
    let base = core.publish("base", small.unwrap()).unwrap();
    let slice = |name, shape: [usize; 2]| {
        let bytes = vec![1; shape[0] * shape[1]];
        let made = flat.register(("pirate", name), Dtype::U8, shape, &bytes);
        made.unwrap().handle()
    };
    let [a, b] = [slice("a", [1, 3]), slice("b", [2, 1])];
    let mut group = flat.lora_group("pirate");
    let scale = ModuleScale::new(1, 1.0, false);
    group.module("p", scale, a, b).unwrap();
    core.replace(a.set(), weight(3, 9)).unwrap();
    let commits = core.stats().commits;
    let refused = group.seal("pirate", base).unwrap_err();
    assert!(matches!(refused, Error::Conflict { .. }), "{refused}");
    assert_eq!(
        (core.stats().commits, books(&flat)),
        (commits, (2, 5, 0, 1))
    );
    assert_eq!(flat.get(a).unwrap().bytes(), [9; 3]);
    assert!(core.lookup("pirate").is_none());
}

#[test]
fn sealed_slices_are_the_adapter_that_a_file_would_have_given() {
    let flat = flat();
    let core = Arc::clone(flat.registry());
    let base = core.publish("base", tiny()).unwrap();
    let expected = core.stage(adapter("pirate-v1", base)).unwrap();
    let group = slices(&flat, base, "pirate-v1");
    let count = flat.adapter_handles("pirate").len();
    assert!(count >= 2);
    let commits = core.stats().commits;
    let sealed = group.seal("pirate", base).unwrap();
    assert_eq!(core.stats().commits, commits + 1, "at one instant");
    let lease = core.acquire([base, sealed.set]).unwrap();
    let set = lease.set(sealed.set).unwrap();
    assert_eq!(set.identity(), expected.identity());
    assert_eq!(set.generation(), sealed.generation);
    assert_eq!(sealed.previous.len(), count);
    for slice in sealed.previous {
        slice.reclaimed(SOON).unwrap();
    }
    assert_eq!(flat.totals(), Totals::default());
    assert!(flat.adapter_names().is_empty());

    // The next version, over the first one.
    let next = core.stage(adapter("pirate-v2", base)).unwrap();
    let again = slices(&flat, base, "pirate-v2");
    let swapped = again.seal_over(sealed.set).unwrap();
    assert_eq!(swapped.set, sealed.set);
    assert_eq!(swapped.previous[0].generation(), sealed.generation);
    assert_eq!(set.identity(), expected.identity(), "a lease keeps its own");
    let lease = core.acquire(sealed.set).unwrap();
    assert_eq!(lease.set(sealed.set).unwrap().identity(), next.identity());
}

#[test]
fn a_group_that_does_not_fit_is_refused_and_changes_nothing() {
    let flat = flat();
    let core = Arc::clone(flat.registry());
    let small = InMemory::new().tensor("p.weight", Dtype::U8, [2, 3], [0; 6]);
    let base = core.publish("base", small.unwrap()).unwrap();
    let slice = |adapter, name: &str, shape: [usize; 2]| {
        let bytes = vec![1; shape[0] * shape[1]];
        let made = flat.register((adapter, name), Dtype::U8, shape, &bytes);
        made.unwrap().handle()
    };
    let a = slice("pirate", "a", [1, 3]);
    let b = slice("pirate", "b", [2, 1]);
    let other = slice("robot", "a", [1, 3]);
    let plain = put(&flat, "plain", 1);
    let scale = |rank| ModuleScale::new(rank, 2.0, false);
    let pair = |module: &str, rank| {
        let mut group = flat.lora_group("pirate");
        group.module(module, scale(rank), a, b).map(|()| group)
    };
    let mismatch = |refused: Error, says: &str| {
        let text = refused.to_string();
        assert!(matches!(refused, Error::AdapterMismatch { .. }), "{text}");
        assert!(text.contains(says), "{text}");
    };
    untouched(&flat, || {
        mismatch(pair("p", 0).unwrap_err(), "rank is 0");
        mismatch(
            pair("p", 2).unwrap().seal("x", base).unwrap_err(),
            "rank 2 by the configuration",
        );
        mismatch(
            pair("q", 1).unwrap().seal("x", base).unwrap_err(),
            "the base has no tensor of this module",
        );
        mismatch(
            flat.lora_group("pirate").seal("x", base).unwrap_err(),
            "no module",
        );
        let mut group = pair("p", 1).unwrap();
        mismatch(
            group.module("p", scale(1), a, b).unwrap_err(),
            "slices already",
        );
        for stranger in [other, plain] {
            let refused = group.module("q", scale(1), a, stranger).unwrap_err();
            mismatch(refused, "not a slice of this adapter");
        }
        let refused = group.seal("base", base).unwrap_err();
        assert!(
            matches!(refused, Error::AlreadyPublished { .. }),
            "{refused}"
        );
        let refused = pair("p", 1).unwrap().seal_over(base).unwrap_err();
        assert!(matches!(refused, Error::AdapterWithoutBase { .. }));
    });
    // A slice that nobody paired would be lost.
    let c = slice("pirate", "c", [2, 1]);
    let refused = untouched(&flat, || pair("p", 1).unwrap().seal("x", base));
    mismatch(refused.unwrap_err(), r"flat\u{2f}pirate/c is in no module");
    flat.unregister(c).unwrap().reclaimed(SOON).unwrap();
    // Somebody else's alias of a slice.
    let alias = flat.alias("alias", a, Dtype::U8, [1, 3]).unwrap().handle();
    let refused = untouched(&flat, || pair("p", 1).unwrap().seal("x", base));
    assert!(matches!(refused, Err(Error::WeightTied { .. })));
    assert!(matches!(
        flat.unregister_adapter("pirate"),
        Err(Error::WeightTied { .. })
    ));
    flat.unregister(alias).unwrap();
    // A slice that went meanwhile, although the group still holds its bytes.
    let group = pair("p", 1).unwrap();
    flat.unregister(b).unwrap();
    assert!(matches!(
        group.seal("x", base),
        Err(Error::StaleHandle { handle }) if handle == b.set()
    ));
    assert!(core.lookup("x").is_none() && flat.get(a).is_ok());
    assert_eq!(core.ledger().reserved, 0);
}

#[test]
fn a_slice_may_be_an_alias_within_its_adapter() {
    let flat = flat();
    let two = InMemory::new()
        .tensor("p.weight", Dtype::U8, [2, 3], [0; 6])
        .and_then(|set| set.tensor("q.weight", Dtype::U8, [2, 3], [0; 6]));
    let base = flat.registry().publish("base", two.unwrap()).unwrap();
    let put = |name, shape: [usize; 2], fill| {
        let bytes = vec![fill; shape[0] * shape[1]];
        let made = flat.register(("vera", name), Dtype::U8, shape, &bytes);
        made.unwrap().handle()
    };
    let shared = put("shared.A", [1, 3], 1);
    let [p, q] = [put("p.B", [2, 1], 2), put("q.B", [2, 1], 3)];
    let tied = flat.alias(("vera", "q.A"), shared, Dtype::U8, [1, 3]);
    let tied = tied.unwrap().handle();
    assert_eq!(flat.adapter_handles("vera").len(), 4);
    let scale = ModuleScale::new(1, 1.0, false);
    let mut group = flat.lora_group("vera");
    group.module("p", scale, shared, p).unwrap();
    group.module("q", scale, tied, q).unwrap();
    let sealed = group.seal("vera", base).unwrap();
    let lease = flat.registry().acquire(sealed.set).unwrap();
    let view = lease.set(sealed.set).unwrap().adapter().unwrap();
    for (index, fill) in [2, 3].into_iter().enumerate() {
        let module = view.module(index).unwrap();
        assert_eq!(module.a.bytes(), [1; 3]);
        assert_eq!(module.b.bytes(), [fill; 2]);
    }
    assert_eq!(flat.totals(), Totals::default());
}
