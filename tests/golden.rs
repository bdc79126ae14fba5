//! Golden answers through the registry: what transformers and PEFT compute from the fixtures, the
//! example's worker computes through leases: text, ids and first-token logits.

mod support;

#[path = "../examples/serve/llama.rs"]
#[allow(dead_code, reason = "the example uses all of it")]
mod llama;
#[path = "../examples/serve/oracle.rs"]
#[allow(dead_code, reason = "the example uses all of it")]
mod oracle;
#[path = "../examples/serve/worker.rs"]
mod worker;

use llama::{Config, Model};
use oracle::{Expected, TOLERANCE};
use support::{adapter, fixture, registry};
use weighbridge::source::Checkpoint;

/// Every prompt of `version`, through a base in `model`.
fn check(model: &str, version: Option<&str>) {
    let dir = fixture(model);
    let expected = Expected::beside(&dir).expect("fixtures/expected.json");
    let registry = registry();
    let base = registry
        .publish("base", Checkpoint::open(&dir).unwrap())
        .unwrap();
    let set = version.map(|name| registry.publish(name, adapter(name, base)).unwrap());
    let model = Model::resolve(&registry, base, Config::read(&dir).unwrap()).unwrap();
    let cases = expected.cases(version).expect("cases for this version");
    assert_eq!(cases.len(), expected.prompts.len());
    for (prompt, ids, logits) in cases {
        let Expected {
            prompts, max_new, ..
        } = &expected;
        let asked = &prompts[prompt].ids;
        let answer = worker::serve(&registry, &model, base, set, asked, *max_new).unwrap();
        assert_eq!(answer.ids, ids, "{version:?}: {}", prompts[prompt].text);
        let worst = answer
            .logits
            .iter()
            .zip(&logits)
            .map(|(a, b)| (a - b).abs());
        let worst = worst.fold(0.0, f32::max);
        assert!(
            worst <= TOLERANCE,
            "{version:?}: {}: off by {worst}",
            prompts[prompt].text
        );
        assert_eq!(answer.logits.len(), logits.len());
        assert_eq!(answer.generation.is_some(), set.is_some());
    }
}

#[test]
fn base() {
    check("tiny-llama", None);
}

#[test]
fn base_in_three_shards() {
    check("tiny-llama-sharded", None);
}

#[test]
fn pirate_v1() {
    check("tiny-llama", Some("pirate-v1"));
}

#[test]
fn pirate_v2() {
    check("tiny-llama", Some("pirate-v2"));
}

#[test]
fn robot_on_all_seven_modules() {
    check("tiny-llama", Some("robot"));
}

#[test]
fn shout_rank_stabilised() {
    check("tiny-llama", Some("shout"));
}

#[test]
fn ranked_by_patterns_on_the_sharded_base() {
    check("tiny-llama-sharded", Some("ranked"));
}
