//! What would be wrong numbers is an error, and says which.

mod support;

use candle_core::{DType, Device};
use candle_nn::Init;
use candle_nn::var_builder::SimpleBackend;
use support::{Oracle, Tiny, fixtures, row};
use weighbridge::source::{Checkpoint, InMemory, Source};
use weighbridge::{Dtype, SetHandle, WeightRegistry};
use weighbridge_candle::llama::Turn;
use weighbridge_candle::{Batch, Error, Fitting, LoraLinear, RegistryBackend};

fn backend(source: InMemory) -> (WeightRegistry, SetHandle, RegistryBackend) {
    let registry = WeightRegistry::builder().build().unwrap();
    let set = registry.publish("base", source).unwrap();
    let backend = RegistryBackend::new(registry.acquire(set).unwrap(), set).unwrap();
    (registry, set, backend)
}

fn get(
    backend: &RegistryBackend,
    name: &str,
    shape: &[usize],
    dtype: DType,
) -> Result<candle_core::Tensor, String> {
    backend
        .get(shape.into(), name, Init::Const(0.0), dtype, &Device::Cpu)
        .map_err(|error| error.to_string())
}

#[test]
fn names_shapes_and_kinds_of_numbers_are_checked() {
    let zeros = |bytes| vec![0u8; bytes];
    let source = InMemory::new()
        .tensor("half", Dtype::F16, [2, 3], zeros(12))
        .unwrap()
        .tensor("ids", Dtype::I64, [4], zeros(32))
        .unwrap()
        .tensor("odd", Dtype::U16, [2], zeros(4))
        .unwrap();
    let (_registry, _, backend) = backend(source);
    assert_eq!(
        get(&backend, "half", &[2, 3], DType::F32).unwrap().dtype(),
        DType::F32
    );
    assert_eq!(
        get(&backend, "half", &[2, 3], DType::F16).unwrap().dtype(),
        DType::F16
    );
    assert_eq!(
        get(&backend, "ids", &[4], DType::I64).unwrap().dtype(),
        DType::I64
    );
    assert_eq!(backend.dtype_of("half").unwrap(), DType::F16);
    assert!(backend.contains_tensor("half") && !backend.contains_tensor("hal"));

    let said = get(&backend, "half", &[3, 2], DType::F32).unwrap_err();
    assert!(
        said.contains("half") && said.contains("[3, 2]") && said.contains("[2, 3]"),
        "{said}"
    );
    let said = get(&backend, "hal", &[2, 3], DType::F32).unwrap_err();
    assert!(said.contains("cannot find tensor hal"), "{said}");
    let said = get(&backend, "ids", &[4], DType::F32).unwrap_err();
    assert!(
        said.contains("ids is I64") && said.contains("F32"),
        "{said}"
    );
    let said = get(&backend, "odd", &[2], DType::F32).unwrap_err();
    assert!(said.contains("odd is U16"), "{said}");
    assert!(matches!(
        backend.dtype_of("odd"),
        Err(Error::NoSuchDtype { .. })
    ));
    assert!(matches!(backend.dtype_of("none"), Err(Error::Candle(_))));
    // Also where the shape is the checkpoint's affair.
    let unchecked = backend
        .get_unchecked("half", DType::F32, &Device::Cpu)
        .unwrap();
    assert_eq!(unchecked.dims(), [2, 3]);
}

#[test]
fn what_is_tied_or_asked_for_twice_is_one_tensor() {
    let registry = WeightRegistry::builder().build().unwrap();
    let base = registry
        .publish("llama", Checkpoint::open(fixtures("tiny-llama")).unwrap())
        .unwrap();
    let backend = RegistryBackend::new(registry.acquire(base).unwrap(), base).unwrap();
    let id = |name: &str, dtype| get(&backend, name, &[130, 96], dtype).unwrap().id();
    let embedding = id("model.embed_tokens.weight", DType::F32);
    assert_eq!(id("lm_head.weight", DType::F32), embedding, "tied");
    assert_eq!(
        id("model.embed_tokens.weight", DType::F32),
        embedding,
        "again"
    );
    assert_ne!(
        id("lm_head.weight", DType::F16),
        embedding,
        "another dtype is another tensor"
    );
    assert_eq!(
        id("model.embed_tokens.weight", DType::F16),
        id("lm_head.weight", DType::F16)
    );
}

#[test]
fn a_model_and_a_lease_of_different_bases_do_not_mix() {
    let tiny = Tiny::load();
    let robot = tiny.publish("robot");
    let built = tiny.model.sites().generation();
    let before = tiny.registry.acquire([tiny.base, robot]).unwrap();

    // The same bytes under another number are the same base.
    let mut swap = tiny.registry.transaction();
    let again = swap
        .stage(Checkpoint::open(fixtures("tiny-llama-sharded")).unwrap())
        .unwrap();
    swap.replace(tiny.base, again).unwrap();
    swap.rebind_adapters(tiny.base).unwrap();
    swap.commit().unwrap();
    let lease = tiny.registry.acquire([tiny.base, robot]).unwrap();
    assert_ne!(lease.set(tiny.base).unwrap().generation(), built);
    tiny.model.sequence(lease, Some(robot)).unwrap();

    // Others are not.
    let mut swap = tiny.registry.transaction();
    let other = swap.stage(changed_checkpoint()).unwrap();
    swap.replace(tiny.base, other).unwrap();
    swap.rebind_adapters(tiny.base).unwrap();
    swap.commit().unwrap();
    for adapter in [None, Some(robot)] {
        let lease = tiny.registry.acquire([tiny.base, robot]).unwrap();
        let refused = tiny.model.sequence(lease, adapter).unwrap_err();
        assert!(
            matches!(&refused, Error::OtherBase { built: of, .. } if *of == built),
            "{refused}"
        );
    }
    // A lease from before still goes with the model.
    let mut sequence = tiny.model.sequence(before, Some(robot)).unwrap();
    let case = &Oracle::read().cases(Some("robot"))[0];
    let logits = tiny
        .model
        .step(&mut [Turn {
            sequence: &mut sequence,
            tokens: &case.prompt,
        }])
        .unwrap();
    assert!(support::far(&row(&logits, 0), &case.logits) < 1e-4);
}

/// The tiny checkpoint with one byte of one tensor changed.
fn changed_checkpoint() -> Checkpoint {
    let place = tempfile::tempdir().unwrap();
    let directory = place.path();
    for file in ["config.json", "model.safetensors"] {
        let mut bytes = support::read(&fixtures(&format!("tiny-llama/{file}")));
        if file == "model.safetensors" {
            *bytes.last_mut().unwrap() ^= 1;
        }
        std::fs::write(directory.join(file), bytes).unwrap();
    }
    // Its files are open when the directory goes.
    Checkpoint::open(directory).unwrap()
}

#[test]
fn an_adapter_is_applied_as_a_whole_or_refused() {
    let tiny = Tiny::load();
    let zeros = |numbers: usize| vec![0u8; 4 * numbers];
    let q = "model.layers.0.self_attn.q_proj";
    let lora = |dtype, a: [usize; 2], b: [usize; 2], width: usize| {
        let (a_bytes, b_bytes) = (
            vec![0u8; width * a[0] * a[1]],
            vec![0u8; width * b[0] * b[1]],
        );
        InMemory::new()
            .lora(q, dtype, (a, a_bytes), (b, b_bytes), 1.0)
            .unwrap()
            .on(tiny.base)
    };
    let refused = |name: &str, source: InMemory| {
        let set = tiny.registry.publish(name, source).unwrap();
        let lease = tiny.registry.acquire([tiny.base, set]).unwrap();
        tiny.model.sequence(lease, Some(set)).unwrap_err()
    };

    let with = InMemory::new()
        .lora(
            q,
            Dtype::F32,
            ([2, 96], zeros(192)),
            ([96, 2], zeros(192)),
            1.0,
        )
        .unwrap()
        .replacement("model.norm.weight", Dtype::F32, [96], zeros(96))
        .unwrap()
        .on(tiny.base);
    let said = refused("replaces", with);
    assert!(
        matches!(&said, Error::Replaces { tensor, .. } if tensor == "model.norm.weight"),
        "{said}"
    );
    let said = refused("integers", lora(Dtype::I8, [2, 96], [96, 2], 1));
    assert!(
        matches!(
            &said,
            Error::NoFloats {
                dtype: Dtype::I8,
                ..
            }
        ),
        "{said}"
    );

    // A model that does not read adapters there.
    let backend =
        RegistryBackend::new(tiny.registry.acquire(tiny.base).unwrap(), tiny.base).unwrap();
    let nowhere = backend.sites().unwrap();
    let robot = tiny.publish("robot");
    let lease = tiny.registry.acquire([tiny.base, robot]).unwrap();
    let said = Fitting::new(lease.clone(), Some(robot), &nowhere).unwrap_err();
    assert!(matches!(said, Error::NoSuchSite { .. }), "{said}");
    assert!(said.to_string().contains("It does at: nowhere"), "{said}");
    // Not an adapter, and not in the lease.
    let said = Fitting::new(lease, Some(tiny.base), &nowhere).unwrap_err();
    assert!(matches!(said, Error::NoAdapter { .. }), "{said}");
    let lease = tiny.registry.acquire(tiny.base).unwrap();
    let said = Fitting::new(lease, Some(robot), &nowhere).unwrap_err();
    assert!(
        matches!(said, Error::Registry(weighbridge::Error::NotInLease { .. })),
        "{said}"
    );
}

/// A model whose layer has another shape than the base's module of that name.
#[test]
fn matrices_that_do_not_fit_the_layer_are_refused() {
    let tiny = Tiny::load();
    let robot = tiny.publish("robot");
    let backend =
        RegistryBackend::new(tiny.registry.acquire(tiny.base).unwrap(), tiny.base).unwrap();
    let mut sites = backend.sites().unwrap();
    let weight = candle_core::Tensor::zeros((48, 96), DType::F32, &Device::Cpu).unwrap();
    let layer = candle_nn::Linear::new(weight, None);
    let module = "model.layers.0.self_attn.q_proj".to_owned();
    LoraLinear::new(layer, module, &mut sites).unwrap();
    let lease = tiny.registry.acquire([tiny.base, robot]).unwrap();
    let said = Fitting::new(lease, Some(robot), &sites).unwrap_err();
    assert!(matches!(&said, Error::Misfit { outputs: 48, .. }), "{said}");
}

#[test]
fn steps_that_cannot_be_are_refused_before_anything_is_seen() {
    let tiny = Tiny::load();
    let mut one = tiny.sequence(None);
    let mut two = tiny.sequence(None);
    let long = vec![1; 257];
    for tokens in [&[][..], &[130], &long] {
        let refused = tiny.model.step(&mut [
            Turn {
                sequence: &mut one,
                tokens: &[128, 65],
            },
            Turn {
                sequence: &mut two,
                tokens,
            },
        ]);
        let refused = refused.unwrap_err();
        let right = match tokens.len() {
            0 => matches!(refused, Error::NoToken),
            1 => matches!(
                refused,
                Error::NoSuchToken {
                    token: 130,
                    vocabulary: 130
                }
            ),
            _ => matches!(
                refused,
                Error::TooLong {
                    there: 0,
                    more: 257,
                    positions: 256
                }
            ),
        };
        assert!(right, "{refused}");
        assert!(one.is_empty() && two.is_empty());
    }
    // To the last position, and not beyond.
    tiny.model
        .step(&mut [Turn {
            sequence: &mut one,
            tokens: &long[..255],
        }])
        .unwrap();
    tiny.model
        .step(&mut [Turn {
            sequence: &mut one,
            tokens: &[1],
        }])
        .unwrap();
    let refused = tiny
        .model
        .step(&mut [Turn {
            sequence: &mut one,
            tokens: &[1],
        }])
        .unwrap_err();
    assert!(
        matches!(
            refused,
            Error::TooLong {
                there: 256,
                more: 1,
                ..
            }
        ),
        "{refused}"
    );

    let other = Tiny::load();
    let mut foreign = other.sequence(None);
    let refused = tiny
        .model
        .step(&mut [Turn {
            sequence: &mut foreign,
            tokens: &[1],
        }])
        .unwrap_err();
    assert!(matches!(refused, Error::OtherModel { .. }), "{refused}");
}

/// The same base, and still another model: of its next generation, or built a second time.
#[test]
fn what_was_fitted_to_one_model_is_not_used_with_another_of_the_same_base() {
    let tiny = Tiny::load();
    let again = support::llama(&tiny.registry, tiny.base, &fixtures("tiny-llama"));
    let mut sequence = tiny.sequence(None);
    tiny.model
        .step(&mut [Turn {
            sequence: &mut sequence,
            tokens: &[128, 65],
        }])
        .unwrap();
    let mut swap = tiny.registry.transaction();
    let other = swap.stage(changed_checkpoint()).unwrap();
    swap.replace(tiny.base, other).unwrap();
    swap.commit().unwrap();
    let next = support::llama(&tiny.registry, tiny.base, &fixtures("tiny-llama"));
    for model in [&again, &next] {
        let turn = Turn {
            sequence: &mut sequence,
            tokens: &[66],
        };
        let refused = model.step(&mut [turn]).unwrap_err();
        assert!(matches!(refused, Error::OtherModel { .. }), "{refused}");
    }
    assert_eq!(sequence.len(), 2, "it has seen nothing of it");
    let turn = Turn {
        sequence: &mut sequence,
        tokens: &[66],
    };
    tiny.model.step(&mut [turn]).unwrap();
}

/// A layer that was added after an adapter was fitted would read nothing of it.
#[test]
fn a_fitting_knows_all_layers_of_its_model_or_is_refused() {
    let tiny = Tiny::load();
    let backend =
        RegistryBackend::new(tiny.registry.acquire(tiny.base).unwrap(), tiny.base).unwrap();
    let mut sites = backend.sites().unwrap();
    let vb = backend.var_builder(DType::F32, &Device::Cpu);
    let lease = || tiny.registry.acquire(tiny.base).unwrap();
    let early = Fitting::new(lease(), None, &sites).unwrap();
    let set = tiny.publish("shout");
    let vb = vb.pp("model.layers.0.self_attn.q_proj");
    let layer = LoraLinear::load(96, 96, vb.clone(), &mut sites).unwrap();
    // Two layers of one module are one module of the adapter, and its others are still nowhere.
    LoraLinear::load(96, 96, vb, &mut sites).unwrap();
    let both = tiny.registry.acquire([tiny.base, set]).unwrap();
    let said = Fitting::new(both, Some(set), &sites).unwrap_err();
    assert!(matches!(said, Error::NoSuchSite { .. }), "{said}");

    let x = candle_core::Tensor::zeros((1, 96), DType::F32, &Device::Cpu).unwrap();
    let late = Fitting::new(lease(), None, &sites).unwrap();
    for fitting in [&early, &late] {
        layer.forward(&x, &Batch::new().rows(1, fitting)).unwrap();
    }
    let mut few = backend.sites().unwrap();
    for module in modules(&tiny, set) {
        let weight = candle_core::Tensor::zeros(module.1, DType::F32, &Device::Cpu).unwrap();
        LoraLinear::new(candle_nn::Linear::new(weight, None), module.0, &mut few).unwrap();
    }
    let both = tiny.registry.acquire([tiny.base, set]).unwrap();
    let fitted = Fitting::new(both, Some(set), &few).unwrap();
    let weight = candle_core::Tensor::zeros((96, 96), DType::F32, &Device::Cpu).unwrap();
    let linear = candle_nn::Linear::new(weight, None);
    let added = LoraLinear::new(linear, "another".into(), &mut few).unwrap();
    let refused = added
        .forward(&x, &Batch::new().rows(1, &fitted))
        .unwrap_err();
    assert!(matches!(refused, Error::OtherModel { .. }), "{refused}");
}

/// Names of an adapter's modules, and the shapes of their layers.
fn modules(tiny: &Tiny, set: SetHandle) -> Vec<(String, (usize, usize))> {
    let lease = tiny.registry.acquire(set).unwrap();
    let view = lease.set(set).unwrap().adapter().unwrap();
    let each = view.modules().map(Result::unwrap);
    each.map(|one| (one.module.to_owned(), (one.b.shape()[0], one.a.shape()[1])))
        .collect()
}

/// What a fitting would refuse is known from the headers, before anything is published.
#[test]
fn a_plan_tells_whether_an_adapter_would_be_applied_as_a_whole() {
    let tiny = Tiny::load();
    let sites = tiny.model.sites();
    for name in support::ADAPTERS {
        sites.check(name, tiny.adapter(name).plan()).unwrap();
    }
    let zeros = |numbers: usize| vec![0u8; 4 * numbers];
    let lora = |module: &str| {
        InMemory::new()
            .lora(
                module,
                Dtype::F32,
                ([2, 96], zeros(192)),
                ([96, 2], zeros(192)),
                1.0,
            )
            .unwrap()
    };
    let refused = |source: &InMemory| sites.check("x", source.plan()).unwrap_err();
    let said = refused(&lora("model.layers.0.nothing"));
    assert!(
        matches!(&said, Error::NoSuchSite { module, .. } if module == "model.layers.0.nothing")
    );
    assert!(
        said.to_string()
            .starts_with("x changes model.layers.0.nothing"),
        "{said}"
    );
    let with = lora("model.layers.0.self_attn.q_proj");
    let with = with
        .replacement("model.norm.weight", Dtype::F32, [96], zeros(96))
        .unwrap();
    assert!(matches!(refused(&with), Error::Replaces { .. }));
    let bytes = InMemory::new()
        .lora(
            "lm_head",
            Dtype::I8,
            ([2, 96], vec![0; 192]),
            ([130, 2], vec![0; 260]),
            1.0,
        )
        .unwrap();
    assert!(matches!(refused(&bytes), Error::NoFloats { .. }));
    let checkpoint = Checkpoint::open(fixtures("tiny-llama")).unwrap();
    assert!(matches!(
        sites.check("x", checkpoint.plan()),
        Err(Error::NoAdapter { .. })
    ));
}

#[test]
fn eight_bits_with_a_scale_beside_them_are_refused() {
    let source = InMemory::new()
        .tensor("a.weight", Dtype::F8_E4M3, [4], [0x38; 4])
        .unwrap()
        .tensor("b.weight", Dtype::F8_E4M3, [4], [0x38; 4])
        .unwrap()
        .tensor("b.weight_scale", Dtype::F32, [1], [0; 4])
        .unwrap();
    let (_registry, _, backend) = backend(source);
    let ones = get(&backend, "a.weight", &[4], DType::F32).unwrap();
    assert_eq!(ones.to_vec1::<f32>().unwrap(), [1.0; 4]);
    let said = get(&backend, "b.weight", &[4], DType::F32).unwrap_err();
    assert!(said.contains("b.weight_scale"), "{said}");
}
