//! Tied weights: made one that are not, left two that are one, or lost.

use weighbridge::source::{Checkpoint, InMemory, Source};
use weighbridge::{Dtype, Error, WeightKind, WeightRegistry};

use crate::support::{SOON, copy, registry, rewrite, tiny};

const HEAD: &str = "lm_head.weight";
const EMBEDDING: &str = "model.embed_tokens.weight";

/// accelerate PR #4083: the table of ties is keyed by data pointers; tensors without memory all have pointer
/// 0, and so all weights are one.
#[test]
fn tensors_that_look_the_same_are_not_tied() {
    let of = |fills: [u8; 3]| {
        let mut names = ["a", "b", "c"].into_iter().zip(fills);
        let with = |set: InMemory, (name, fill): (&str, u8)| {
            set.tensor(name, Dtype::U8, [4], [fill; 4])
                .and_then(|set| set.tensor(format!("{name}.empty"), Dtype::U8, [0, 4], []))
        };
        names
            .try_fold(InMemory::new(), with)
            .map_err(|error: Error| error)
    };
    let registry = registry();
    // The same bytes three times, and three times none at all.
    let set = registry.publish("s", of([7; 3]).unwrap()).unwrap();
    let lease = registry.acquire(set).unwrap();
    let there = lease.set(set).unwrap();
    let addresses: std::collections::HashSet<_> = ["a", "b", "c"]
        .iter()
        .map(|name| there.get(name).unwrap().bytes().as_ptr())
        .collect();
    assert_eq!(addresses.len(), 3);
    assert!(
        there
            .iter()
            .all(|weight| weight.unwrap().kind() == WeightKind::Base)
    );
    // One of them changes, and it is the only one.
    registry.replace(set, of([7, 8, 7]).unwrap()).unwrap();
    let lease = registry.acquire(set).unwrap();
    let fills = ["a", "b", "c"].map(|name| lease.set(set).unwrap().get(name).unwrap().bytes()[0]);
    assert_eq!(fills, [7, 8, 7]);
}

/// The head is the embedding, in the same place.
fn tied(registry: &WeightRegistry, name: &str) {
    let set = registry.lookup(name).unwrap();
    let lease = registry.acquire(set).unwrap();
    let [head, embedding] =
        [HEAD, EMBEDDING].map(|name| lease.set(set).unwrap().get(name).unwrap());
    assert_eq!(head.bytes().as_ptr(), embedding.bytes().as_ptr());
    assert_eq!(registry.ledger().resident, tiny().plan().charged_bytes());
}

/// accelerate PR #2330, unsloth PR #7215: on the way to the disk and back tied weights become two, and a later
/// update reaches one of them.
#[test]
fn a_tie_is_one_after_any_number_of_round_trips() {
    let registry = registry();
    let set = registry.publish("tiny", tiny()).unwrap();
    registry.keep_previous(set, 1).unwrap();
    tied(&registry, "tiny");
    registry.replace(set, tiny()).unwrap();
    tied(&registry, "tiny");
    registry.rollback(set).unwrap();
    tied(&registry, "tiny");
    registry.keep_previous(set, 0).unwrap();
    registry.replace_drained(set, tiny(), SOON).unwrap();
    tied(&registry, "tiny");
    registry.retire(set).unwrap().reclaimed(SOON).unwrap();
    // Written out as it is served, with both, and read again.
    let set = registry.publish("tiny", tiny()).unwrap();
    let lease = registry.acquire(set).unwrap();
    let dir = copy("tiny-llama");
    let all = lease.set(set).unwrap();
    let all: Vec<_> = all
        .iter()
        .map(Result::unwrap)
        .map(|weight| (weight.name(), weight))
        .collect();
    assert!(all.iter().any(|(name, _)| *name == HEAD));
    let file = safetensors::serialize(all, None).unwrap();
    std::fs::write(dir.path().join("model.safetensors"), file).unwrap();
    drop(lease);
    registry.retire(set).unwrap().reclaimed(SOON).unwrap();
    registry
        .publish("tiny", Checkpoint::open(dir.path()).unwrap())
        .unwrap();
    tied(&registry, "tiny");
}

/// vLLM PRs #52147 and #51665, #6758: there are 56 places that tie, each in its way; an update of the
/// embedding does not reach the head.
#[test]
fn an_update_of_an_embedding_reaches_every_head_at_the_same_instant() {
    let registry = registry();
    let embedding = |fill| {
        InMemory::new()
            .tensor(EMBEDDING, Dtype::U8, [64], [fill; 64])
            .unwrap()
    };
    let model = registry.publish("model", embedding(1)).unwrap();
    let embed = registry.weight_handle(model, EMBEDDING).unwrap();
    // Heads of several models, and a head of a head.
    let head = |of| InMemory::new().alias(HEAD, of).unwrap();
    let first = registry.publish("first", head(embed)).unwrap();
    let of_first = registry.weight_handle(first, HEAD).unwrap();
    let second = registry.publish("second", head(of_first)).unwrap();
    for step in 2..20 {
        registry.replace(model, embedding(step)).unwrap();
        let lease = registry.acquire([model, first, second]).unwrap();
        let all = [(model, EMBEDDING), (first, HEAD), (second, HEAD)]
            .map(|(set, name)| lease.set(set).unwrap().get(name).unwrap().bytes());
        assert!(
            all.iter().all(|bytes| *bytes == [step; 64]),
            "step {step}: {all:?}"
        );
        assert!(all.iter().all(|bytes| bytes.as_ptr() == all[0].as_ptr()));
    }
    assert_eq!(registry.ledger().resident, 64);
}

/// SGLang PR #1508, transformers PR #43429: the head is not in the file and not tied either, and the model
/// talks gibberish.
#[test]
fn a_head_is_the_embedding_or_it_is_missing_and_never_something_else() {
    for (configured, is_there) in [("true", true), ("false", false)] {
        let dir = copy("tiny-llama");
        let config = dir.path().join("config.json");
        rewrite(
            &config,
            "\"tie_word_embeddings\": true",
            &format!("\"tie_word_embeddings\": {configured}"),
        );
        let registry = registry();
        let set = registry
            .publish("tiny", Checkpoint::open(dir.path()).unwrap())
            .unwrap();
        let lease = registry.acquire(set).unwrap();
        match lease.set(set).unwrap().get(HEAD) {
            Ok(head) => assert!(
                is_there && head.bytes() == lease.set(set).unwrap().get(EMBEDDING).unwrap().bytes()
            ),
            Err(error) => assert!(
                !is_there && matches!(error, Error::NoSuchTensor { .. }),
                "{error}"
            ),
        }
        assert_eq!(registry.weight_handle(set, HEAD).is_ok(), is_there);
    }
}
