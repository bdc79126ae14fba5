//! The six behaviours of the registry that it takes the place of.

use super::*;

#[test]
fn a_registered_weight_is_found_and_read() {
    let flat = flat();
    assert!(flat.is_empty() && flat.lookup("embed").is_none());
    let values = [1.5f32, -2.0].map(f32::to_le_bytes).concat();
    let embed = flat
        .register("embed", Dtype::F32, [1, 2], &values)
        .unwrap()
        .handle();
    assert_eq!(flat.lookup("embed"), Some(embed));
    assert!(flat.lookup("unembed").is_none());
    let pinned = flat.get(embed).unwrap();
    assert_eq!(pinned.bytes(), values);
    assert_eq!((pinned.dtype(), pinned.shape()), (Dtype::F32, &[1, 2][..]));
    assert_eq!((pinned.name(), pinned.handle()), ("embed", embed));
    let entry = flat.entry(embed).unwrap();
    assert_eq!((entry.kind, entry.bytes), (FlatKind::Base, 8));
    assert_eq!((entry.dtype, &*entry.shape), (Dtype::F32, &[1, 2][..]));
    assert_eq!(entry.name.to_string(), "flat/embed");
    assert_eq!((flat.len(), flat.total_bytes()), (1, 8));
}

#[test]
fn the_same_again_is_the_same_and_anything_else_a_conflict() {
    let flat = flat();
    let w = flat.register("w", Dtype::U8, [4], &[1; 4]).unwrap();
    assert!(w.is_new());
    let w = w.handle();
    untouched(&flat, || {
        let again = flat.register("w", Dtype::U8, [4], &[1; 4]).unwrap();
        assert_eq!(again, Registered::Reused(w));
        for (dtype, shape, bytes) in [
            (Dtype::U8, vec![4], [2; 4]),
            (Dtype::U8, vec![2, 2], [1; 4]),
            (Dtype::I8, vec![4], [1; 4]),
        ] {
            let refused = flat.register("w", dtype, &shape, &bytes).unwrap_err();
            let Error::AlreadyRegistered {
                identity, offered, ..
            } = &refused
            else {
                panic!("{refused}")
            };
            assert!(identity.starts_with("U8 [4], blake3:"), "{refused}");
            let side = format!("{dtype} {shape:?}, blake3:");
            assert!(offered.starts_with(&side), "{refused}");
            assert_ne!(identity, offered);
            assert!(refused.is_conflict());
        }
        let other = put_alias_target(&flat, w);
        assert!(matches!(other, Err(Error::AlreadyRegistered { .. })));
    });
    assert_eq!(flat.get(w).unwrap().bytes(), [1; 4]);
}

/// An alias under the name of a weight.
fn put_alias_target(flat: &FlatRegistry, target: FlatHandle) -> Result<Registered, Error> {
    flat.alias("w", target, Dtype::U8, [4])
}

#[test]
fn pins_and_releases_balance() {
    let flat = flat();
    let w = put(&flat, "w", 7);
    assert_eq!(flat.pin_count(w).unwrap(), 0);
    let first = flat.get(w).unwrap();
    let second = flat.pin_as("step-3", w).unwrap();
    let third = second.clone();
    assert_eq!(flat.pin_count(w).unwrap(), 3);
    drop(first);
    assert_eq!(flat.pin_count(w).unwrap(), 2);

    let gone = flat.unregister(w).unwrap();
    assert!(matches!(flat.get(w), Err(Error::StaleHandle { .. })));
    assert_eq!((gone.leases(), gone.is_drained()), (2, false));
    let late = gone.drained(Duration::ZERO).unwrap_err();
    assert!(late.to_string().contains("step-3"), "{late}");
    assert_eq!((second.bytes(), third.bytes()), (&[7; 4][..], &[7; 4][..]));
    drop((second, third));
    gone.reclaimed(SOON).unwrap();
    assert_eq!(flat.registry().ledger().total(), 0);
}

#[test]
fn a_tied_alias_is_its_target() {
    let flat = flat();
    let embed = put(&flat, "embed", 3);
    let head = flat.alias("lm_head", embed, Dtype::U8, [4]).unwrap();
    let again = flat.alias("lm_head", embed, Dtype::U8, [4]).unwrap();
    assert_eq!((head.is_new(), again.is_new()), (true, false));
    let head = head.handle();
    assert_eq!(flat.lookup("lm_head"), Some(head));
    assert_eq!(
        flat.entry(head).unwrap().kind,
        FlatKind::TiedAlias { target: embed }
    );
    let pinned = flat.get(head).unwrap();
    assert_eq!((pinned.bytes(), pinned.handle()), (&[3; 4][..], embed));
    assert_eq!(
        pinned.bytes().as_ptr(),
        flat.get(embed).unwrap().bytes().as_ptr()
    );
    for weight in [head, embed] {
        assert_eq!(flat.pin_count(weight).unwrap(), 1);
    }
    // Another target under the name is a conflict that names both.
    let other = put(&flat, "other", 4);
    let refused = flat.alias("lm_head", other, Dtype::U8, [4]).unwrap_err();
    let text = refused.to_string();
    assert!(
        text.contains("an alias of flat/embed") && text.contains("an alias of flat/other"),
        "{text}"
    );
    // The alias goes alone; then its target can.
    let refused = flat.unregister(embed).unwrap_err();
    assert!(
        matches!(&refused, Error::WeightTied { weight, aliases }
            if weight.name() == "embed" && aliases.len() == 1 && aliases[0].name() == "lm_head"),
        "{refused}"
    );
    flat.unregister(head).unwrap();
    assert!(matches!(flat.get(head), Err(Error::StaleHandle { handle }) if handle == head.set()));
    flat.unregister(embed).unwrap();
}

#[test]
fn totals_skip_aliases() {
    let flat = flat();
    let embed = put(&flat, "embed", 1);
    flat.alias("head", embed, Dtype::U8, [4]).unwrap();
    flat.register(("pirate", "a"), Dtype::F16, [3], &[0; 6])
        .unwrap();
    let Totals {
        base,
        lora,
        aliases,
        ..
    } = flat.totals();
    assert_eq!((base.weights, base.bytes), (1, 4));
    assert_eq!((lora.weights, lora.bytes, aliases), (1, 6, 1));
    assert_eq!((flat.len(), flat.total_bytes()), (2, 10));
    for previous in flat.unregister_cascade(embed).unwrap() {
        previous.reclaimed(SOON).unwrap();
    }
    assert_eq!((flat.len(), flat.total_bytes()), (1, 6));
    assert_eq!(flat.totals().aliases, 0);
    assert!(flat.lookup("head").is_none() && flat.lookup("embed").is_none());
}

#[test]
fn slices_belong_to_their_adapter() {
    let flat = flat();
    put(&flat, "base", 0);
    let slice = |adapter, name: &str, fill| {
        flat.register((adapter, name), Dtype::U8, [2], &[fill; 2])
            .unwrap()
            .handle()
    };
    let pirate = [slice("pirate", "a", 1), slice("pirate", "b", 2)];
    let robot = [slice("robot", "a", 3)];
    assert_eq!(
        flat.adapter_names(),
        ["pirate", "robot"].map(Arc::<str>::from)
    );
    assert_eq!(flat.adapter_handles("pirate"), pirate);
    assert_eq!(flat.adapter_handles("robot"), robot);
    assert!(flat.adapter_handles("nobody").is_empty());
    assert_eq!(flat.adapter_bytes("pirate"), 4);
    let entry = flat.entry(pirate[0]).unwrap();
    assert_eq!(
        (entry.kind, entry.adapter.as_deref()),
        (FlatKind::Lora, Some("pirate"))
    );
    assert_eq!(flat.lookup(("robot", "a")), Some(robot[0]));
    let commits = flat.registry().stats().commits;
    assert_eq!(flat.unregister_adapter("pirate").unwrap().len(), 2);
    assert_eq!(
        flat.registry().stats().commits,
        commits + 1,
        "at one instant"
    );
    assert_eq!(flat.adapter_names(), [Arc::<str>::from("robot")]);
    assert!(flat.unregister_adapter("pirate").unwrap().is_empty());
}
