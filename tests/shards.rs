//! Parts of a model that is spread over devices: where a set says which part it is, and what that
//! prevents.

mod support;

use support::{registry, tiny};
use weighbridge::source::{InMemory, Source};
use weighbridge::{Dtype, Error, Identity, Plan, SetHandle, Shard, WeightRegistry};

fn shard(dim: u32, rank: u32, world: u32) -> Shard {
    Shard { dim, rank, world }
}

/// `up.weight` `[6, 4]` and a norm: `up` is cut by rows where `rank` is given, in two.
fn part(rank: Option<u32>) -> InMemory {
    let set = InMemory::new()
        .tensor("up.weight", Dtype::F16, [6, 4], vec![7; 48])
        .and_then(|set| set.tensor("norm.weight", Dtype::F16, [4], vec![1; 8]))
        .unwrap();
    let rule = |name: &str| (name == "up.weight").then_some(shard(0, rank?, 2));
    set.shards(|tensor| rule(tensor.name())).unwrap()
}

fn identity(source: impl Source) -> Identity {
    registry().stage(source).unwrap().identity().clone()
}

#[test]
fn a_part_that_cannot_be_is_refused() {
    for (wrong, word) in [
        (shard(0, 2, 2), "part 2 of 2"),
        (shard(0, 0, 0), "part 0 of 0"),
        (shard(2, 0, 2), "dimension 2"),
        (shard(u32::MAX, 0, 2), "[6, 4]"),
    ] {
        let plan = Plan::of("x", [("w", Dtype::U8, vec![6, 4])]).unwrap();
        let refused = plan.shards(|_| Some(wrong)).unwrap_err();
        let text = refused.to_string();
        assert!(
            matches!(&refused, Error::InvalidTensor { tensor, .. } if tensor == "w"),
            "{text}"
        );
        assert!(refused.is_malformed() && text.contains(word), "{text}");
        let set = InMemory::new().tensor("w", Dtype::U8, [6, 4], [0; 24]);
        let refused = set.unwrap().shards(|_| Some(wrong)).unwrap_err();
        assert!(refused.to_string().contains(word));
    }
    // A scalar has no dimension; the whole of this has no size.
    let scalar = Plan::of("x", [("w", Dtype::U8, vec![])]).unwrap();
    assert!(scalar.shards(|_| Some(shard(0, 0, 1))).is_err());
    let huge = Plan::of("x", [("w", Dtype::U8, vec![1 << 60, 0])]).unwrap();
    assert!(huge.shards(|_| Some(shard(0, 0, 32))).is_err());
}

#[test]
fn parts_are_in_plan_and_layout_and_a_tie_is_what_its_target_is() {
    let cut = tiny()
        .shards(|tensor| (tensor.name() == "model.embed_tokens.weight").then_some(shard(0, 1, 2)));
    let cut = cut.unwrap();
    let planned = |name: &str| {
        let plan = cut.plan();
        plan.tensors()[plan.position(name).unwrap()].shard()
    };
    assert_eq!(planned("lm_head.weight"), Some(shard(0, 1, 2)));
    assert_eq!(planned("model.norm.weight"), None);
    let registry = registry();
    let set = registry.publish("part", cut).unwrap();
    let whole = registry.publish("whole", tiny()).unwrap();
    let lease = registry.acquire([set, whole]).unwrap();
    let (set, whole) = (lease.set(set).unwrap(), lease.set(whole).unwrap());
    for name in ["lm_head.weight", "model.embed_tokens.weight"] {
        assert_eq!(set.get(name).unwrap().info().shard(), Some(shard(0, 1, 2)));
        assert_eq!(whole.get(name).unwrap().info().shard(), None);
    }
    assert_ne!(set.layout(), whole.layout());
    // Rows of the whole.
    assert_eq!(set.layout().module_features("lm_head"), Some((260, 96)));
}

/// Fixed for ever, as those of whole sets.
#[test]
fn content_identities_of_parts() {
    let (whole, zero, one) = (
        identity(part(None)),
        identity(part(Some(0))),
        identity(part(Some(1))),
    );
    assert!(whole != zero && zero != one && one != whole);
    // The format once more, by hand.
    let mut hasher = blake3::Hasher::new();
    fn number(hasher: &mut blake3::Hasher, n: u64) {
        hasher.update(&n.to_le_bytes());
    }
    fn text(hasher: &mut blake3::Hasher, t: &str) {
        number(hasher, t.len() as u64);
        hasher.update(t.as_bytes());
    }
    hasher.update(b"weighbridge content v1");
    number(&mut hasher, 2);
    for (name, shape, bytes) in [
        ("norm.weight", &[4u64][..], &[1u8; 8][..]),
        ("up.weight", &[6, 4], &[7; 48]),
    ] {
        text(&mut hasher, name);
        text(&mut hasher, "F16");
        number(&mut hasher, shape.len() as u64);
        shape.iter().for_each(|&dim| number(&mut hasher, dim));
        hasher.update(blake3::hash(bytes).as_bytes());
    }
    assert_eq!(whole, Identity::Content(*hasher.finalize().as_bytes()));
    number(&mut hasher, u64::MAX);
    number(&mut hasher, 1);
    text(&mut hasher, "up.weight");
    for n in [0, 1, 2] {
        number(&mut hasher, n);
    }
    assert_eq!(one, Identity::Content(*hasher.finalize().as_bytes()));
    let golden = "blake3:3ab61151b0f45f5b5d0fc680c4055fb970db15b26243509a21419783814c9a95";
    assert_eq!(one.to_string(), golden);
}

#[test]
fn of_one_part_in_all_it_is_the_whole() {
    let one = part(None).shards(|_| Some(shard(0, 0, 1))).unwrap();
    assert!(one.plan().tensors().iter().all(|t| t.shard().is_none()));
    assert_eq!(identity(one), identity(part(None)));
}

#[test]
fn declared_parts_of_one_revision_are_told_apart() {
    let of = |rank| identity(part(rank).declared("rev-1"));
    let (whole, zero, one) = (of(None), of(Some(0)), of(Some(1)));
    assert_eq!(whole, Identity::Declared("rev-1".into()));
    assert!(matches!(&zero, Identity::DeclaredPart(revision, _) if **revision == *"rev-1"));
    assert_ne!(zero, one);
    assert_eq!(zero, of(Some(0)));
    assert_ne!(zero, identity(part(Some(0)).declared("rev-2")));
    let texts = [whole, zero, one].map(|identity| identity.to_string());
    assert!(texts[0] != texts[1] && texts[1] != texts[2], "{texts:?}");
    assert!(texts[1].ends_with(":rev-1"), "{texts:?}");
}

#[test]
fn what_was_computed_with_one_part_is_never_taken_for_the_other() {
    for declared in [false, true] {
        let of = |rank| {
            let set = part(Some(rank));
            if declared { set.declared("rev-1") } else { set }
        };
        let registry = registry();
        let zero = registry.publish("rank 0", of(0)).unwrap();
        let one = registry.publish("rank 1", of(1)).unwrap();
        let key = |set: SetHandle| registry.acquire(set).unwrap().cache_key();
        assert_ne!(key(zero), key(one), "declared: {declared}");
        assert_eq!(key(zero), key(zero));
    }
}

#[test]
fn a_replace_never_puts_another_part_in_its_place() {
    let registry = registry();
    let set = registry.publish("rank 0", part(Some(0))).unwrap();
    let before = registry.acquire(set).unwrap().cache_key();
    let refuse = |failed: &Error, texts: [&str; 2]| {
        let text = failed.to_string();
        assert!(
            matches!(failed, Error::ShardMismatch { tensor, .. } if tensor == "up.weight"),
            "{text}"
        );
        assert!(failed.is_conflict(), "{text}");
        assert!(texts.iter().all(|side| text.contains(side)), "{text}");
        assert!(
            text.contains("rank 0") && text.contains("up.weight"),
            "{text}"
        );
    };
    let zero = "part 0 of 2 along dimension 0";
    let failed = registry.replace(set, part(Some(1))).unwrap_err();
    refuse(failed.error(), [zero, "part 1 of 2 along dimension 0"]);
    assert!(failed.into_staged().is_some(), "the staged set comes back");
    let failed = registry.replace(set, part(None)).unwrap_err();
    refuse(failed.error(), [zero, "the whole"]);
    let along = part(None).shards(|t| (t.shape().len() == 2).then_some(shard(1, 0, 2)));
    let failed = registry.replace(set, along.unwrap()).unwrap_err();
    refuse(failed.error(), [zero, "part 0 of 2 along dimension 1"]);
    let mut transaction = registry.transaction();
    let staged = registry.stage(part(Some(1))).unwrap();
    let failed = transaction.replace(set, staged).unwrap_err();
    refuse(failed.error(), [zero, "part 1 of 2 along dimension 0"]);
    drop((transaction, failed));
    assert_eq!(registry.acquire(set).unwrap().cache_key(), before);

    // The same part of other bytes, and with more beside it, goes through; the whole stays the whole.
    let next = part(Some(0)).tensor("more", Dtype::U8, [1], [1]).unwrap();
    registry.replace(set, next).unwrap();
    let whole = registry.publish("whole", part(None)).unwrap();
    registry.replace(whole, part(None)).unwrap();
    let failed = registry.replace(whole, part(Some(0))).unwrap_err();
    assert!(matches!(
        failed.error(),
        Error::ShardMismatch { current: None, .. }
    ));
}

/// A LoRA adapter of rank 2 on one module.
fn lora(module: &str, outputs: usize, inputs: usize) -> InMemory {
    let a = ([2, inputs], vec![0; 2 * inputs]);
    let b = ([outputs, 2], vec![0; 2 * outputs]);
    InMemory::new().lora(module, Dtype::U8, a, b, 1.0).unwrap()
}

/// Rank 1 of 4: `up` `[8, 4]` by rows, `down` `[4, 8]` by columns. `given`: the engine says so, too.
fn base(registry: &WeightRegistry, given: bool) -> SetHandle {
    let set = InMemory::new()
        .tensor("up.weight", Dtype::F16, [2, 4], vec![0; 16])
        .and_then(|set| set.tensor("down.weight", Dtype::F16, [4, 2], vec![0; 16]))
        .unwrap();
    let cut = |name: &str| Some(shard(u32::from(name == "down.weight"), 1, 4));
    let mut set = set.shards(|tensor| cut(tensor.name())).unwrap();
    if given {
        set = set.module("up", 8, 4).module("down", 4, 8);
    }
    registry.publish("rank 1", set).unwrap()
}

#[test]
fn adapters_are_whole_whatever_part_of_the_base_is_here() {
    let registry = registry();
    let base = base(&registry, false);
    for (name, outputs, inputs) in [("up", 8, 4), ("down", 4, 8)] {
        let fits = lora(name, outputs, inputs).on(base);
        registry.publish(name, fits).unwrap();
    }
    for (name, outputs, inputs) in [("up", 2, 4), ("down", 4, 2), ("up", 8, 16)] {
        let refused = registry.publish("x", lora(name, outputs, inputs).on(base));
        let refused = refused.unwrap_err();
        let text = refused.to_string();
        assert!(
            matches!(refused.error(), Error::AdapterMismatch { .. }),
            "{text}"
        );
        assert!(text.contains("maps") && text.contains('8'), "{text}");
    }
    // A full tensor saved with an adapter is as whole.
    let fits = InMemory::new().replacement("up.weight", Dtype::F16, [8, 4], vec![0; 64]);
    registry.publish("full", fits.unwrap().on(base)).unwrap();
    let cut = InMemory::new().replacement("down.weight", Dtype::F16, [4, 2], vec![0; 16]);
    assert!(registry.publish("cut", cut.unwrap().on(base)).is_err());
}

#[test]
fn an_adapter_that_is_cut_is_cut_like_its_base() {
    cut_like(false);
    cut_like(true);
}

fn cut_like(given: bool) {
    let registry = registry();
    let base = base(&registry, given);
    let cut = |set: InMemory, matrix: &str, shard: Shard| {
        let suffix = format!("{matrix}.weight");
        let set = set.shards(|t| t.name().ends_with(&suffix).then_some(shard));
        set.unwrap().on(base)
    };
    let (b, a) = ("lora_B", "lora_A");
    let up = cut(lora("up", 2, 4), b, shard(0, 1, 4));
    registry.publish("up", up).unwrap();
    let down = cut(lora("down", 4, 2), a, shard(1, 1, 4));
    registry.publish("down", down).unwrap();
    for (set, words) in [
        // Another rank's part, a part of what the base has whole, and a cut through the rank.
        (
            cut(lora("up", 2, 4), b, shard(0, 2, 4)),
            ["part 2 of 4", "part 1 of 4"],
        ),
        (
            cut(lora("up", 8, 2), a, shard(1, 0, 2)),
            ["part 0 of 2", "the whole"],
        ),
        (
            cut(lora("up", 8, 4), a, shard(0, 0, 2)),
            ["rank", "part 0 of 2 along dimension 0"],
        ),
        (
            cut(lora("up", 8, 4), b, shard(1, 0, 2)),
            ["rank", "part 0 of 2 along dimension 1"],
        ),
    ] {
        let refused = registry.publish("x", set).unwrap_err();
        let text = refused.to_string();
        assert!(
            matches!(refused.error(), Error::AdapterMismatch { module, .. } if module == "up"),
            "{text}"
        );
        assert!(words.iter().all(|word| text.contains(word)), "{text}");
    }
}
