//! What is no flat weight, and sources that are more than one.

use super::*;

#[test]
fn what_only_looks_like_a_weight_is_none() {
    let flat = flat();
    let core = flat.registry();
    let two = weight(1, 1).tensor("zz", Dtype::U8, [1], [2]).unwrap();
    core.publish(("flat", "two"), two).unwrap();
    let w = put(&flat, "w", 1);
    // An adapter on a weight, with tensors of its own: not an alias.
    core.publish(("flat", "on it"), addition(1, 1, w.set()))
        .unwrap();
    for name in ["two", "on it"] {
        let theirs = flat.lookup(name).unwrap();
        assert!(
            matches!(flat.get(theirs), Err(Error::NoSuchTensor { .. })),
            "{name}"
        );
        let refused = flat.alias("tied", theirs, Dtype::U8, [4]);
        assert!(
            matches!(refused, Err(Error::OtherNamespace { .. })),
            "{name}"
        );
        assert_eq!(flat.pin_count(theirs).unwrap(), 0);
    }
    let held = flat.get(w).unwrap();
    let theirs = flat.lookup("on it").unwrap();
    assert_eq!(
        (flat.pin_count(theirs).unwrap(), held.bytes()),
        (0, &[1; 4][..])
    );
}

#[test]
fn a_source_that_is_more_than_its_tensor_is_refused_or_kept_whole() {
    let flat = flat();
    let core = flat.registry();
    let other = core.publish("other", bytes(4, 1)).unwrap();
    let alias = core.weight_handle(other, "w").unwrap();
    let more = bytes(4, 1).alias("more", alias).unwrap();
    let refused = untouched(&flat, || flat.register_from("w", more).unwrap_err());
    assert!(
        refused.to_string().contains("1 tensor and 1 alias"),
        "{refused}"
    );
    // Parts of a tensor are different things, though their bytes are the same.
    let part = |rank| {
        let shard = Shard {
            dim: 0,
            rank,
            world: 2,
        };
        bytes(4, 1).shards(move |_| Some(shard)).unwrap()
    };
    let first = flat.register_from("part", part(0)).unwrap();
    assert!(first.is_new());
    assert_eq!(
        flat.register_from("part", part(0)).unwrap(),
        Registered::Reused(first.handle())
    );
    assert!(flat.register_from("part", part(1)).is_err());
    let declared = |rank| part(rank).declared("r1");
    assert!(flat.register_from("r1", declared(0)).unwrap().is_new());
    let again = untouched(&flat, || flat.register_from("r1", declared(0)).unwrap());
    assert!(!again.is_new());
    assert!(flat.register_from("r1", declared(1)).is_err());
    // Memory that is to stay where it is cannot be a weight, which is a copy.
    let theirs = Foreign::new(Theirs([1; 4].into())).unwrap();
    let theirs = theirs.tensor("w", Dtype::U8, [4], 0).unwrap();
    let refused = untouched(&flat, || flat.register_from("theirs", theirs).unwrap_err());
    assert!(
        refused.is_malformed() && refused.to_string().contains("is copied"),
        "{refused}"
    );
}

struct Theirs(Box<[u8]>);

impl weighbridge::memory::Owner for Theirs {
    fn byte_len(&self) -> u64 {
        self.0.len() as u64
    }
    fn address(&self) -> u64 {
        self.0.as_ptr().expose_provenance() as u64
    }
    fn as_host(&self) -> Option<&[u8]> {
        Some(&self.0)
    }
}

#[test]
fn whatever_is_loaded_again_is_the_same() {
    let flat = flat();
    let core = flat.registry();
    let shard = Shard {
        dim: 0,
        rank: 0,
        world: 2,
    };
    let part = || bytes(4, 1).shards(|_| Some(shard)).unwrap();
    let owner = flat.load("owner", bytes(4, 1)).unwrap().handle();
    let w = core.weight_handle(owner, "w").unwrap();
    let user = || InMemory::new().alias("head", w).unwrap();
    type Make<'m> = (&'m str, &'m dyn Fn() -> InMemory);
    let all: [Make<'_>; 4] = [
        ("part", &part),
        ("declared part", &|| part().declared("r1")),
        ("user", &user),
        ("declared user", &|| user().declared("r1")),
    ];
    for (name, source) in all {
        let first = flat.load(name, source()).unwrap();
        assert!(first.is_new(), "{name}");
        let again = untouched(&flat, || flat.load(name, source()).unwrap());
        assert_eq!(again, Registered::Reused(first.handle()), "{name}");
    }
    let other = user().tensor("more", Dtype::U8, [1], [1]).unwrap();
    assert!(flat.load("user", other).is_err());
}

#[test]
fn what_changes_nothing_commits_nothing() {
    let flat = flat();
    put_all(&flat, &[("a", 1), ("b", 1)]).unwrap();
    untouched(&flat, || {
        let again = put_all(&flat, &[("a", 1), ("b", 1)]).unwrap();
        assert!(again.iter().all(|one| !one.is_new()));
        assert!(put_all(&flat, &[]).unwrap().is_empty());
        assert!(flat.unregister_adapter("nobody").unwrap().is_empty());
    });
}
