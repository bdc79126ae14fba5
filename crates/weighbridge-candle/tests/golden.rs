//! The numbers are those of transformers and PEFT, whichever way they come about.

mod support;

use candle_core::{DType, Device, Tensor};
use candle_transformers::models::llama as theirs;
use support::{ADAPTERS, Oracle, Tiny, best, far, fixtures, generate, llama, read, row};
use weighbridge::WeightRegistry;
use weighbridge::source::{Checkpoint, PeftAdapter};
use weighbridge_candle::RegistryBackend;
use weighbridge_candle::llama::Turn;

/// A fair tolerance, says fixtures/README.md; a single tensor of another version moves a logit by 0.1.
const TOLERANCE: f64 = 1e-4;

#[test]
fn every_answer_is_that_of_transformers_and_peft() {
    let oracle = Oracle::read();
    for directory in ["tiny-llama", "tiny-llama-sharded"] {
        let tiny = Tiny::load_from(directory);
        let adapters = ADAPTERS.map(|name| (Some(name), Some(tiny.publish(name))));
        for (name, adapter) in [(None, None)].into_iter().chain(adapters) {
            for case in oracle.cases(name) {
                let mut sequence = tiny.sequence(adapter);
                let logits = tiny.model.step(&mut [Turn {
                    sequence: &mut sequence,
                    tokens: &case.prompt,
                }]);
                let off = far(&row(&logits.unwrap(), 0), &case.logits);
                assert!(off < TOLERANCE, "{name:?}: {off}");
                let answer = generate(&tiny.model, &mut tiny.sequence(adapter), &case.prompt, 32);
                assert_eq!(answer, case.completion, "{name:?}");
            }
        }
    }
}

/// All prompts under all adapters in one batch, prompts of different lengths first and then token by token, while
/// the adapters are swapped and retired: each row is its own lease's.
#[test]
fn a_batch_of_all_adapters_and_two_generations_of_one_answers_as_each_alone() {
    let (tiny, oracle) = (Tiny::load(), Oracle::read());
    let set = tiny.publish("pirate-v1");
    let old = (Some("pirate-v1"), Some(set));
    let mut running = Vec::new();
    for case in oracle.cases(old.0) {
        running.push((old.0, tiny.sequence(old.1), case));
    }
    tiny.registry
        .replace(set, tiny.adapter("pirate-v2"))
        .unwrap();
    let rest = ["robot", "shout", "ranked"].map(|name| (Some(name), Some(tiny.publish(name))));
    for (name, adapter) in [(None, None), (Some("pirate-v2"), Some(set))]
        .into_iter()
        .chain(rest)
    {
        for case in oracle.cases(name) {
            running.push((name, tiny.sequence(adapter), case));
        }
    }
    assert_eq!(running.len(), 48);
    let generations = [0, 16].map(|at| running[at].1.fitting().adapter().unwrap());
    assert_eq!(generations[0].0, generations[1].0);
    assert_ne!(
        generations[0].1, generations[1].1,
        "two of one set, in one batch"
    );
    // Nobody publishes any of them any more.
    let going: Vec<_> = [Some(set)]
        .into_iter()
        .chain(rest.map(|rest| rest.1))
        .flatten()
        .map(|set| tiny.registry.retire(set).unwrap())
        .collect();

    let mut next: Vec<Vec<u32>> = running
        .iter()
        .map(|(.., case)| case.prompt.clone())
        .collect();
    let mut answers = vec![Vec::new(); running.len()];
    let mut active: Vec<usize> = (0..running.len()).collect();
    let mut first = true;
    while !active.is_empty() {
        let mut turns: Vec<Turn<'_>> = running
            .iter_mut()
            .enumerate()
            .filter(|(at, _)| active.contains(at))
            .map(|(at, (_, sequence, _))| Turn {
                sequence,
                tokens: &next[at],
            })
            .collect();
        let logits = tiny.model.step(&mut turns).unwrap();
        let mut left = Vec::new();
        for (row_at, &at) in active.iter().enumerate() {
            let (name, _, case) = &running[at];
            let logits = row(&logits, row_at);
            if first {
                let off = far(&logits, &case.logits);
                assert!(off < TOLERANCE, "{name:?}: {off}");
            }
            let token = best(&logits);
            answers[at].push(token);
            if !tiny.model.config().ends(token) && answers[at].len() < 32 {
                next[at] = vec![token];
                left.push(at);
            }
        }
        first = false;
        active = left;
    }
    for ((name, _, case), answer) in running.iter().zip(&answers) {
        assert_eq!(*answer, case.completion, "{name:?}");
    }
    assert!(
        going.iter().all(|going| !going.is_drained()),
        "they run on their leases"
    );
    drop(running);
    for going in going {
        going.reclaimed(std::time::Duration::from_secs(60)).unwrap();
    }
}

/// A prompt that is seen in pieces gives what it gives at once.
#[test]
fn a_prompt_may_come_in_pieces() {
    let (tiny, oracle) = (Tiny::load(), Oracle::read());
    let robot = tiny.publish("robot");
    for case in oracle.cases(Some("robot")) {
        let mut sequence = tiny.sequence(Some(robot));
        let mut last = Vec::new();
        for piece in case.prompt.chunks(3) {
            last = row(
                &tiny
                    .model
                    .step(&mut [Turn {
                        sequence: &mut sequence,
                        tokens: piece,
                    }])
                    .unwrap(),
                0,
            );
        }
        assert_eq!(sequence.len(), case.prompt.len());
        let off = far(&last, &case.logits);
        assert!(off < TOLERANCE, "{off}");
    }
}

/// candle's own model, built from the registry, with the tie and without being told of it.
#[test]
fn candle_s_own_llama_builds_from_a_registry() {
    let registry = WeightRegistry::builder().build().unwrap();
    let directory = fixtures("tiny-llama");
    let base = registry
        .publish("llama", Checkpoint::open(&directory).unwrap())
        .unwrap();
    let backend = RegistryBackend::new(registry.acquire(base).unwrap(), base).unwrap();
    let config: theirs::LlamaConfig =
        serde_json::from_slice(&read(&format!("{directory}/config.json"))).unwrap();
    assert_eq!(config.tie_word_embeddings, Some(true));
    for tied in [Some(true), Some(false)] {
        let mut config = config.clone();
        config.tie_word_embeddings = tied;
        let config = config.into_config(false);
        let vb = backend.var_builder(DType::F32, &Device::Cpu);
        let model = theirs::Llama::load(vb, &config).unwrap();
        for case in Oracle::read().cases(None) {
            let mut cache = theirs::Cache::new(true, DType::F32, &config, &Device::Cpu).unwrap();
            let prompt = Tensor::new(case.prompt.as_slice(), &Device::Cpu)
                .unwrap()
                .unsqueeze(0)
                .unwrap();
            let off = far(
                &row(&model.forward(&prompt, 0, &mut cache).unwrap(), 0),
                &case.logits,
            );
            assert!(off < TOLERANCE, "{tied:?}: {off}");
        }
    }
}

/// A real model: its ids under no adapter and two real ones, from candle's Llama and from ours.
#[test]
fn smollm2_gives_the_ids_that_transformers_peft_and_candle_agree_on() {
    let Some(directory) = std::env::var_os("WEIGHBRIDGE_SMOLLM2") else {
        println!(
            "skipped: WEIGHBRIDGE_SMOLLM2 is not the directory that fixtures/smollm2/fetch made"
        );
        return;
    };
    let directory = directory.into_string().unwrap();
    let expected: serde_json::Value =
        serde_json::from_slice(&read(&fixtures("smollm2/expected.json"))).unwrap();
    let ids = |value: &serde_json::Value| -> Vec<u32> {
        value
            .as_array()
            .unwrap()
            .iter()
            .map(|id| id.as_u64().unwrap() as u32)
            .collect()
    };
    let prompt = ids(&expected["prompt_ids"]);
    let registry = WeightRegistry::builder().build().unwrap();
    let base = registry
        .publish("smollm2", Checkpoint::open(&directory).unwrap())
        .unwrap();

    let backend = RegistryBackend::new(registry.acquire(base).unwrap(), base).unwrap();
    let config: theirs::LlamaConfig =
        serde_json::from_slice(&read(&format!("{directory}/config.json"))).unwrap();
    let config = config.into_config(false);
    let model =
        theirs::Llama::load(backend.var_builder(DType::F32, &Device::Cpu), &config).unwrap();
    let mut cache = theirs::Cache::new(true, DType::F32, &config, &Device::Cpu).unwrap();
    let (mut seen, mut next, mut answer) = (0, prompt.clone(), Vec::<u32>::new());
    while answer.len() < 16 {
        let tokens = Tensor::new(next.as_slice(), &Device::Cpu)
            .unwrap()
            .unsqueeze(0)
            .unwrap();
        let logits = model.forward(&tokens, seen, &mut cache).unwrap();
        seen += next.len();
        next = vec![best(&row(&logits, 0))];
        answer.extend(&next);
    }
    assert_eq!(answer, ids(&expected["base"]["ids"]), "candle's");
    drop((model, cache, backend));

    let model = llama(&registry, base, &directory);
    for name in ["base", "pirate", "robot"] {
        let adapter = (name != "base").then(|| {
            let source = PeftAdapter::open(fixtures(&format!("smollm2/adapters/{name}"))).unwrap();
            registry.publish(name, source.on(base)).unwrap()
        });
        let sets: Vec<_> = [Some(base), adapter].into_iter().flatten().collect();
        let mut sequence = model
            .sequence(registry.acquire(sets).unwrap(), adapter)
            .unwrap();
        let answer = generate(&model, &mut sequence, &prompt, 16);
        assert_eq!(answer, ids(&expected[name]["ids"]), "{name}");
    }
}
