//! What a lease says about itself: a record that outlives everything, and a key that is equal when
//! the weights are.

mod support;

use std::collections::HashSet;

use support::{SOON, adapter, bytes, registry, tiny};
use weighbridge::source::InMemory;
use weighbridge::{CacheKey, Dtype, Provenance, SetHandle, SetKind, WeightRegistry};

/// Two by two.
fn base(fill: u8) -> InMemory {
    InMemory::new()
        .tensor("layer.weight", Dtype::U8, [2, 2], [fill; 4])
        .unwrap()
}

fn lora(fill: u8, on: SetHandle) -> InMemory {
    InMemory::new()
        .lora(
            "layer",
            Dtype::U8,
            ([1, 2], [fill; 2]),
            ([2, 1], [fill; 2]),
            1.0,
        )
        .unwrap()
        .on(on)
}

fn key(registry: &WeightRegistry, sets: &[SetHandle]) -> CacheKey {
    registry.acquire(sets).unwrap().cache_key()
}

#[test]
fn a_record_says_what_was_leased_and_holds_none_of_it() {
    let registry = registry();
    let set = registry.publish("tiny", tiny()).unwrap();
    let pirate = registry
        .publish(("tenant-7", "pirate"), adapter("pirate-v1", set))
        .unwrap();
    let lease = registry.acquire([set, pirate]).unwrap();
    let record = lease.provenance();
    assert_eq!(record.number, lease.number());
    assert_eq!(record.cache_key, lease.cache_key());
    let [first, second] = &record.sets[..] else {
        panic!("{record:?}")
    };
    assert_eq!(first.handle, set);
    assert_eq!(
        (first.kind, second.kind),
        (SetKind::Checkpoint, SetKind::Adapter)
    );
    assert_eq!(second.name.namespace(), "tenant-7");
    for (leased, recorded) in lease.sets().zip(&record.sets) {
        assert_eq!(leased.identity(), &recorded.identity);
        assert_eq!(leased.generation(), recorded.generation);
    }
    assert_eq!(first.base, None);
    let on = second.base.as_ref().expect("an adapter");
    assert_eq!((on.handle, on.generation), (set, first.generation));
    assert_eq!(on.name.as_ref(), Some(&first.name));
    assert_eq!(record.clone(), record);
    // Neither bytes nor a lease.
    drop(lease);
    registry.retire(pirate).unwrap().reclaimed(SOON).unwrap();
    registry.retire(set).unwrap().reclaimed(SOON).unwrap();
    drop(registry);
    assert!(
        record
            .to_string()
            .contains("\"tenant-7/pirate\" generation 2, adapter, blake3:")
    );
}

#[test]
fn the_base_is_the_generation_that_the_adapter_was_checked_against() {
    let registry = registry();
    let set = registry.publish("base", base(1)).unwrap();
    registry.replace(set, base(2)).unwrap();
    let code = registry.publish("code", lora(3, set)).unwrap();
    let alone = registry.acquire(code).unwrap().provenance();
    let on = alone.sets[0].base.as_ref().unwrap();
    assert_eq!(
        (on.handle, on.generation.number(), &on.name),
        (set, 2, &None)
    );
    // Both change in one commit: the new one stands on what that commit made current.
    let mut both = registry.transaction();
    let (b, c) = (
        both.stage(base(4)).unwrap(),
        both.stage(lora(5, set)).unwrap(),
    );
    both.replace(set, b).unwrap();
    both.replace(code, c).unwrap();
    both.commit().unwrap();
    let record = registry.acquire([set, code]).unwrap().provenance();
    let generation = record.sets[0].generation;
    assert_eq!(generation, record.sets[1].generation);
    assert_eq!(record.sets[1].base.as_ref().unwrap().generation, generation);
    // The record of the old lease is what it was.
    assert_eq!(on.generation.number(), 2);
}

#[test]
fn a_record_is_serialised_as_it_always_was() {
    let registry = registry();
    let set = registry
        .publish("line\u{2028}break", base(1).declared("rev \"1\""))
        .unwrap();
    let code = registry
        .publish(("tenant", "code"), lora(2, set).declared("rev 2"))
        .unwrap();
    let both = registry.acquire([set, code]).unwrap().provenance();
    let golden = format!(
        concat!(
            r#"{{"number":2,"#,
            r#""cache_key":"1dbbc78cca30cf9570f065a6533de90d28ae3387426499c42df8104ab387079f","#,
            r#""sets":[{{"namespace":"","name":"line{ls}break","kind":"checkpoint","generation":1,"#,
            r#""identity":"declared:rev \"1\"","handle":"{set}","base":null}},"#,
            r#"{{"namespace":"tenant","name":"code","kind":"adapter","generation":2,"#,
            r#""identity":"declared:rev 2","handle":"{code}","base":{{"namespace":"","#,
            r#""name":"line{ls}break","generation":1,"handle":"{set}"}}}}]}}"#,
        ),
        ls = '\u{2028}',
        set = set,
        code = code,
    );
    assert_eq!(serde_json::to_string(&both).unwrap(), golden);
    let alone = registry.acquire(code).unwrap().provenance();
    let json = serde_json::to_value(&alone).unwrap();
    assert!(json["sets"][0]["base"]["name"].is_null(), "{json}");
    assert_eq!(
        both.to_string(),
        "\"line\\u{2028}break\" generation 1, checkpoint, declared:rev \\\"1\\\"\n\
         \"tenant/code\" generation 2, adapter, declared:rev 2, on \"line\\u{2028}break\" generation 1"
    );
    // The key, from its format: a tag, and the length and text of each identity.
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"weighbridge cache key v1");
    for identity in ["declared:rev \"1\"", "declared:rev 2"] {
        hasher.update(&(identity.len() as u64).to_le_bytes());
        hasher.update(identity.as_bytes());
    }
    assert_eq!(both.cache_key.as_bytes(), hasher.finalize().as_bytes());
    let lines = |record: &Provenance| record.to_string().lines().count();
    assert_eq!((lines(&both), lines(&alone)), (2, 1));
    assert!(
        alone
            .to_string()
            .ends_with(&format!(", on {set} generation 1"))
    );
}

#[test]
fn equal_weights_have_equal_keys_on_every_registry() {
    let (here, there) = (registry(), registry());
    there.publish("something else", bytes(8, 9)).unwrap();
    let keys = [&here, &there].map(|registry| {
        let set = registry.publish("tiny", tiny()).unwrap();
        let name = format!("pirate of {set}");
        let pirate = registry.publish(name, adapter("pirate-v1", set)).unwrap();
        [
            key(registry, &[set]),
            key(registry, &[pirate]),
            key(registry, &[set, pirate]),
        ]
    });
    assert_eq!(keys[0], keys[1]);
    assert_eq!(HashSet::from(keys[0]).len(), 3);
}

#[test]
fn a_key_covers_every_set_and_their_order() {
    let registry = registry();
    let set = registry.publish("base", base(1)).unwrap();
    let other = registry.publish("other base", base(2)).unwrap();
    let a = registry.publish("a", lora(3, set)).unwrap();
    let b = registry.publish("b", lora(4, set)).unwrap();
    let on_other = registry.publish("a on other", lora(3, other)).unwrap();
    let keys = [
        &[][..],
        &[set],
        &[other],
        &[a],
        &[set, a],
        &[a, set],
        &[other, on_other],
        &[set, b],
        &[set, a, b],
        &[set, b, a],
        &[set, set],
    ];
    let distinct: HashSet<CacheKey> = keys.iter().map(|sets| key(&registry, sets)).collect();
    assert_eq!(distinct.len(), keys.len());
    // What the lease holds and nothing else: the same adapter, alone.
    assert_eq!(key(&registry, &[a]), key(&registry, &[on_other]));
    let text = key(&registry, &[set]).to_string();
    assert!(text.len() == 64 && text.bytes().all(|c| c.is_ascii_hexdigit()));
}

#[test]
fn a_key_follows_the_bytes_and_not_the_generation() {
    let registry = registry();
    let set = registry.publish("s", base(1)).unwrap();
    let first = key(&registry, &[set]);
    registry.replace(set, base(1)).unwrap();
    assert_eq!(key(&registry, &[set]), first, "the same bytes again");
    registry.replace(set, base(2)).unwrap();
    assert_ne!(key(&registry, &[set]), first);
    registry.replace(set, base(1)).unwrap();
    assert_eq!(key(&registry, &[set]), first, "rolled back");
    // Declared: the revision decides, and is no content.
    registry.replace(set, base(1).declared("r1")).unwrap();
    let declared = key(&registry, &[set]);
    assert_ne!(declared, first);
    registry.replace(set, base(9).declared("r1")).unwrap();
    assert_eq!(key(&registry, &[set]), declared);
}
