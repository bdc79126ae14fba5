//! The checker's twin: the example's worker with a planted fault. A checker that never looks also
//! says zero, so it must report each of these, and nothing about the worker as it is.

mod support;

#[path = "../examples/serve/llama.rs"]
#[allow(dead_code, reason = "the example uses all of it")]
mod llama;
#[path = "../examples/serve/oracle.rs"]
#[allow(dead_code, reason = "the example uses all of it")]
mod oracle;
#[path = "../examples/serve/worker.rs"]
#[allow(dead_code, reason = "the example uses all of it")]
mod worker;

use llama::{Access, Config, Model};
use oracle::{Expected, Oracle, Verdict};
use support::{adapter, fixture, registry};
use weighbridge::source::{Checkpoint, InMemory};
use weighbridge::{AdapterModule, Dtype, Error, SetHandle, Weight, WeightHandle, WeightRegistry};
use worker::{Answer, Request};

const PIRATES: [&str; 2] = ["pirate-v1", "pirate-v2"];

struct Scene {
    registry: WeightRegistry,
    model: Model,
    expected: Expected,
    oracle: Oracle,
    base: SetHandle,
    pirate: SetHandle,
}

fn scene() -> Scene {
    let dir = fixture("tiny-llama");
    let registry = registry();
    let base = registry
        .publish("base", Checkpoint::open(&dir).unwrap())
        .unwrap();
    let model = Model::resolve(&registry, base, Config::read(&dir).unwrap()).unwrap();
    let expected = Expected::beside(&dir).unwrap();
    let mut oracle = Oracle::default();
    oracle.version("base", None);
    for name in PIRATES {
        let identity = registry
            .stage(adapter(name, base))
            .unwrap()
            .identity()
            .clone();
        let version = oracle.version(name, Some(identity));
        for (prompt, ids, logits) in expected.cases(Some(name)).unwrap() {
            oracle.case(version, prompt, ids, logits);
        }
    }
    let pirate = registry
        .publish("pirate", adapter(PIRATES[0], base))
        .unwrap();
    Scene {
        registry,
        model,
        expected,
        oracle,
        base,
        pirate,
    }
}

impl Scene {
    /// The pirates change places.
    fn swap(&self, round: usize) {
        let next = adapter(PIRATES[(round + 1) % 2], self.base);
        self.registry.replace(self.pirate, next).unwrap();
    }

    fn admit(&self) -> Request {
        Request::admit(&self.registry, self.base, Some(self.pirate), &self.model).unwrap()
    }

    /// Answers `prompt` through `access` and has it judged against what `request` leased.
    fn judge(&self, prompt: usize, request: &Request, mut access: impl Access) -> Verdict {
        let (adapter, generation) = request.provenance().unwrap();
        let ids = &self.expected.prompts[prompt].ids;
        let max_new = self.expected.max_new;
        let (ids, logits) = worker::answer(&self.model, &mut access, ids, max_new).unwrap();
        self.oracle.judge(
            prompt,
            &Answer {
                ids,
                logits,
                adapter,
                generation,
            },
        )
    }
}

/// A request during which the adapter is swapped between layers, at a layer of each step.
struct Swapped<'s> {
    scene: &'s Scene,
    request: Request,
    at: usize,
    swaps: usize,
    /// The fault: a new lease at each layer.
    acquires_per_layer: bool,
}

impl Access for Swapped<'_> {
    fn before_layer(&mut self, layer: usize) -> Result<(), Error> {
        if layer == self.at {
            self.scene.swap(self.swaps);
            self.swaps += 1;
        }
        if self.acquires_per_layer {
            self.request = self.scene.admit();
        }
        Ok(())
    }

    fn weight(&self, handle: WeightHandle) -> Result<Weight<'_>, Error> {
        self.request.weight(handle)
    }

    fn lora(&self, layer: usize, module: usize) -> Result<Option<AdapterModule<'_>>, Error> {
        self.request.lora(layer, module)
    }
}

/// Every prompt, with a swap before layer `at` of each step.
fn mixed_reads(at: usize, acquires_per_layer: bool) -> usize {
    let scene = scene();
    let prompts = 0..scene.expected.prompts.len();
    let mixed = prompts.filter(|&prompt| {
        let (leased, request) = (scene.admit(), scene.admit());
        let swapped = Swapped {
            scene: &scene,
            request,
            at,
            swaps: prompt,
            acquires_per_layer,
        };
        scene.judge(prompt, &leased, swapped) != Verdict::Match
    });
    mixed.count()
}

#[test]
fn one_lease_per_request_is_never_mixed_whatever_is_swapped_under_it() {
    for layer in 0..4 {
        assert_eq!(mixed_reads(layer, false), 0, "swapped before layer {layer}");
    }
}

#[test]
fn a_new_acquire_per_layer_is_reported_for_every_prompt() {
    for layer in 1..4 {
        assert_eq!(mixed_reads(layer, true), 8, "swapped before layer {layer}");
    }
}

/// An adapter like v1, with one tensor of v2. `foreign`: which module's.
fn frankenstein(scene: &Scene, foreign: usize) -> InMemory {
    let registry = registry();
    let base = registry
        .publish("base", Checkpoint::open(fixture("tiny-llama")).unwrap())
        .unwrap();
    let leases = PIRATES.map(|name| {
        let set = registry.publish(name, adapter(name, base)).unwrap();
        (set, registry.acquire(set).unwrap())
    });
    let view = |at: usize| leases[at].1.set(leases[at].0).unwrap().adapter().unwrap();
    let mut made = InMemory::new();
    for index in 0..view(0).len() {
        let own = view(0).module(index).unwrap();
        let b = if index == foreign {
            view(1).module(index).unwrap().b
        } else {
            own.b
        };
        let matrix = |weight: Weight<'_>| {
            let shape: [usize; 2] = weight.shape().try_into().unwrap();
            (shape, weight.bytes().to_vec())
        };
        made = made
            .lora(own.module, Dtype::F32, matrix(own.a), matrix(b), own.alpha)
            .unwrap();
    }
    made.on(scene.base)
}

#[test]
fn one_tensor_of_v2_in_v1_is_reported_for_every_prompt() {
    let scene = scene();
    for foreign in 0..8 {
        let torn = scene
            .registry
            .publish("torn", frankenstein(&scene, foreign))
            .unwrap();
        for prompt in 0..scene.expected.prompts.len() {
            // The request believes it was served by v1.
            let leased = scene.admit();
            let request =
                Request::admit(&scene.registry, scene.base, Some(torn), &scene.model).unwrap();
            let Verdict::Mixed { leased, answers_of } = scene.judge(prompt, &leased, request)
            else {
                panic!("module {foreign}, prompt {prompt}: a torn adapter passed for v1")
            };
            assert_eq!((leased.as_str(), answers_of.len()), ("pirate-v1", 0));
        }
        scene.registry.retire(torn).unwrap();
    }
}

#[test]
fn an_answer_of_the_other_generation_is_reported() {
    let scene = scene();
    let old = scene.admit();
    scene.swap(0);
    let Verdict::Mixed { leased, answers_of } = scene.judge(0, &old, scene.admit()) else {
        panic!("an answer of v2 passed for v1")
    };
    assert_eq!(
        (leased, answers_of),
        ("pirate-v1".to_owned(), vec!["pirate-v2".to_owned()])
    );
}
