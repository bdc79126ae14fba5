//! The table of a base's modules: where it comes from, what it lets through, what it tells.

mod support;

use std::path::Path;

use support::{fixture, registry, tiny};
use tempfile::TempDir;
use weighbridge::modules::{Linear, Module, ReplacementFit};
use weighbridge::source::{Checkpoint, InMemory, PeftAdapter, Source};
use weighbridge::{Dtype, Error, SetHandle, Shard, WeightKind, WeightRegistry};

/// A tensor of a synthetic file.
type Tensor<'n> = (&'n str, Dtype, Vec<usize>, Vec<u8>);

/// A tensor of zeros.
fn zeros<'n>(name: &'n str, dtype: Dtype, shape: &[usize]) -> Tensor<'n> {
    let bits = dtype.bitsize() * shape.iter().product::<usize>();
    (name, dtype, shape.to_vec(), vec![0; bits / 8])
}

fn write(path: &Path, tensors: &[Tensor<'_>]) {
    let views = tensors.iter().map(|(name, dtype, shape, bytes)| {
        let view = safetensors::tensor::TensorView::new(*dtype, shape.clone(), bytes).unwrap();
        (*name, view)
    });
    let file = safetensors::serialize(views, None).unwrap();
    std::fs::write(path, file).unwrap();
}

/// A checkpoint, and the directory that is there as long as it is needed.
type Kept = (TempDir, Checkpoint);

/// A checkpoint whose `config.json` has this `quantization_config`.
fn checkpoint(quantisation: &str, tensors: &[Tensor<'_>]) -> Kept {
    let dir = tempfile::tempdir().unwrap();
    write(&dir.path().join("model.safetensors"), tensors);
    let config = format!(r#"{{"quantization_config":{quantisation}}}"#);
    std::fs::write(dir.path().join("config.json"), config).unwrap();
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    (dir, checkpoint)
}

/// A LoRA adapter of rank 1 on one module.
fn lora(module: &str, outputs: usize, inputs: usize) -> InMemory {
    let (a, b) = ([1, inputs], [outputs, 1]);
    InMemory::new()
        .lora(
            module,
            Dtype::U8,
            (a, vec![0; inputs]),
            (b, vec![0; outputs]),
            1.0,
        )
        .unwrap()
}

/// (out, in) of a module that is linear.
fn features(registry: &WeightRegistry, base: SetHandle, module: &str) -> Option<(usize, usize)> {
    let lease = registry.acquire(base).unwrap();
    let layout = lease.set(base).unwrap().layout();
    let known = match layout.module_table().get(module) {
        Some(Module::Linear(linear)) => Some((linear.outputs(), linear.inputs())),
        _ => None,
    };
    assert_eq!(known, layout.module_features(module));
    known
}

/// `m` of this checkpoint maps `inputs` to `outputs`, and adapters on it are held to that.
#[track_caller]
fn is_known((_dir, checkpoint): Kept, outputs: usize, inputs: usize) {
    assert_eq!(checkpoint.plan().unchecked_modules(), [""; 0]);
    let registry = registry();
    let base = registry.publish("base", checkpoint).unwrap();
    assert_eq!(features(&registry, base, "m"), Some((outputs, inputs)));
    let fits = registry.publish("fits", lora("m", outputs, inputs).on(base));
    let scope = registry.reader();
    let scope = scope.scope();
    let view = scope.get(fits.unwrap()).unwrap();
    assert_eq!(view.unchecked_modules().count(), 0);
    let refused = registry.publish("other", lora("m", outputs, inputs + 1).on(base));
    let refused = refused.unwrap_err();
    let text = refused.to_string();
    assert!(
        matches!(refused.error(), Error::AdapterMismatch { module, .. } if module == "m"),
        "{text}"
    );
    for side in [inputs, inputs + 1, outputs] {
        assert!(text.contains(&side.to_string()), "{text}");
    }
}

/// Adapters of any features on `m` of this checkpoint are let through, and it shows.
#[track_caller]
fn is_unchecked((_dir, checkpoint): Kept) {
    assert_eq!(checkpoint.plan().unchecked_modules(), ["m"]);
    let registry = registry();
    let base = registry.publish("base", checkpoint).unwrap();
    let adapter = registry.publish("any", lora("m", 7, 5).on(base)).unwrap();
    let lease = registry.acquire([base, adapter]).unwrap();
    let view = lease.set(adapter).unwrap().adapter().unwrap();
    assert_eq!(view.unchecked_modules().collect::<Vec<_>>(), ["m"]);
    let unchecked = |view: weighbridge::SetView<'_>| view.unchecked_modules().count();
    let seen = registry.scope(|scope| {
        (
            unchecked(scope.get(adapter).unwrap()),
            unchecked(scope.get(base).unwrap()),
        )
    });
    assert_eq!(seen, (1, 0));
    // Not even then is a module let through of which the base has nothing.
    let nothing = registry.publish("nothing", lora("n", 7, 5).on(base));
    assert!(nothing.unwrap_err().to_string().contains("no tensor"));
}

#[test]
fn dense_weights_tell_and_all_else_does_not() {
    let registry = registry();
    let base = registry.publish("tiny", tiny()).unwrap();
    for (module, expected) in [
        ("model.layers.3.self_attn.q_proj", Some((96, 96))),
        ("model.layers.0.self_attn.k_proj", Some((48, 96))),
        ("model.layers.0.mlp.down_proj", Some((96, 256))),
        ("lm_head", Some((130, 96))),
        ("model.norm", None),
        ("model.layers.0", None),
    ] {
        assert_eq!(features(&registry, base, module), expected, "{module}");
    }
    let lease = registry.acquire(base).unwrap();
    let table = lease.set(base).unwrap().layout().module_table();
    assert_eq!(table.unchecked(), [""; 0]);
    assert_eq!(table.get("model.norm"), Some(Module::NotLinear));
    // There is something below the first, and below a name that only begins like another nothing.
    assert_eq!(table.get("model.layers.0"), Some(Module::Unchecked));
    assert_eq!(table.get("model.layers.0.self"), None);
    assert_eq!(table.get("model.layers.4"), None);
    assert_eq!(table.get(""), None);
    let norm = registry.publish("norm", lora("model.norm", 96, 96).on(base));
    assert!(norm.unwrap_err().to_string().contains("not linear"));
}

#[test]
fn all_generations_of_one_layout_share_one_table() {
    let registry = registry();
    let base = registry.publish("tiny", tiny()).unwrap();
    let table = |lease: &weighbridge::Lease| {
        let layout = lease.set(base).unwrap().layout();
        std::ptr::from_ref(layout.module_table()) as usize
    };
    let (one, again) = (
        registry.acquire(base).unwrap(),
        registry.acquire(base).unwrap(),
    );
    registry.replace(base, tiny()).unwrap();
    let next = registry.acquire(base).unwrap();
    assert_eq!(table(&one), table(&again));
    assert_eq!(table(&one), table(&next));
}

#[test]
fn gptq() {
    let qweight = |rows| zeros("m.qweight", Dtype::I32, &[rows, 24]);
    let qzeros = zeros("m.qzeros", Dtype::I32, &[2, 3]);
    let scales = zeros("m.scales", Dtype::F16, &[2, 24]);
    let index = |len| zeros("m.g_idx", Dtype::I32, &[len]);
    let four = r#"{"quant_method":"gptq","bits":4,"group_size":32}"#;
    let companions = || vec![qzeros.clone(), scales.clone()];
    let with = |more: &[Tensor<'static>]| [companions(), more.to_vec()].concat();

    is_known(checkpoint(four, &with(&[qweight(8), index(64)])), 24, 64);
    is_known(checkpoint(four, &with(&[qweight(8)])), 24, 64);
    let three = r#"{"quant_method":"gptq","bits":3}"#;
    is_known(checkpoint(three, &with(&[qweight(6), index(64)])), 24, 64);
    // Every module has bits of its own: only the groups tell.
    let mixed = r#"{"quant_method":"gptq","bits":4,"dynamic":{"m":{"bits":8}}}"#;
    is_known(checkpoint(mixed, &with(&[qweight(16), index(64)])), 24, 64);
    is_unchecked(checkpoint(mixed, &with(&[qweight(16)])));

    // Tensors that contradict each other or the configuration, a packing of another kind, no word.
    is_unchecked(checkpoint(four, &with(&[qweight(8), index(63)])));
    is_unchecked(checkpoint(three, &with(&[qweight(8)])));
    let other = zeros("m.scales", Dtype::F16, &[2, 25]);
    is_unchecked(checkpoint(four, &[qweight(8), other]));
    let marlin = r#"{"quant_method":"gptq","bits":4,"checkpoint_format":"marlin"}"#;
    is_unchecked(checkpoint(marlin, &with(&[qweight(8), index(64)])));
    is_unchecked(checkpoint("null", &with(&[qweight(8), index(64)])));

    // An index that is none says nothing.
    let square = zeros("m.g_idx", Dtype::I32, &[64, 1]);
    is_known(
        checkpoint(four, &with(&[qweight(8), square.clone()])),
        24,
        64,
    );
    is_unchecked(checkpoint(mixed, &with(&[qweight(16), square])));
}

/// What is left dense in a quantised checkpoint, as heads are, is checked like any dense module.
#[test]
fn dense_modules_beside_packed_ones() {
    for packed in [
        r#"{"quant_method":"gptq","bits":4}"#,
        r#"{"quant_method":"awq","bits":4,"version":"gemm"}"#,
    ] {
        let weight = zeros("m.weight", Dtype::F16, &[24, 64]);
        is_known(checkpoint(packed, &[weight]), 24, 64);
    }
}

#[test]
fn awq() {
    let tensors = [
        zeros("m.qweight", Dtype::I32, &[64, 3]),
        zeros("m.qzeros", Dtype::I32, &[2, 3]),
        zeros("m.scales", Dtype::F16, &[2, 24]),
    ];
    let awq = |rest: &str| checkpoint(&format!(r#"{{"quant_method":"awq"{rest}}}"#), &tensors);
    is_known(awq(r#","bits":4,"version":"gemm""#), 24, 64);
    is_known(awq(r#","w_bit":4"#), 24, 64);
    is_unchecked(awq(r#","bits":4,"version":"gemv""#));
    is_unchecked(awq(r#","bits":8"#));
    is_unchecked(awq(""));
}

#[test]
fn bitsandbytes_in_4_bits() {
    const BNB: &str = r#"{"quant_method":"bitsandbytes","load_in_4bit":true}"#;
    let state = |kind: &'static str, bytes: Vec<u8>| {
        let shape = vec![bytes.len()];
        (kind, Dtype::U8, shape, bytes)
    };
    let nf4 = "m.weight.quant_state.bitsandbytes__nf4";
    let json = |shape: &str| {
        format!(r#"{{"quant_type":"nf4","blocksize":64,"dtype":"bfloat16","shape":{shape}}}"#)
            .into_bytes()
    };
    let of = |config: &str, weight: Tensor<'static>, state: Tensor<'static>| {
        let absmax = zeros("m.weight.absmax", Dtype::F32, &[24]);
        let map = zeros("m.weight.quant_map", Dtype::F32, &[16]);
        checkpoint(config, &[weight, absmax, map, state])
    };
    let weight = || zeros("m.weight", Dtype::U8, &[24 * 64 / 2, 1]);
    let fp4 = "m.weight.quant_state.bitsandbytes__fp4";
    is_known(of(BNB, weight(), state(nf4, json("[24,64]"))), 24, 64);
    is_known(of(BNB, weight(), state(fp4, json("[64, 24]"))), 64, 24);
    // The bytes in another dtype (`bnb_4bit_quant_storage`), an odd number of weights.
    let stored = zeros("m.weight", Dtype::BF16, &[24 * 64 / 4, 1]);
    is_known(of(BNB, stored, state(nf4, json("[24,64]"))), 24, 64);
    let odd = zeros("m.weight", Dtype::U8, &[8, 1]);
    is_known(of(BNB, odd, state(nf4, json("[3,5]"))), 3, 5);

    // As long as it may be.
    let mut longest = json("[24,64]");
    longest.resize(4 << 10, b' ');
    is_known(of(BNB, weight(), state(nf4, longest)), 24, 64);

    // Not the weight's shape, no shape, no JSON, too long, no word in the configuration. The matrix
    // [768, 1] itself is never taken at its word, nor is one of floats.
    for bytes in [
        json("[24,65]"),
        json("[1536]"),
        json("[24,64,1]"),
        json("[-24,-64]"),
        json("[4294967296,4294967296]"),
        b"{}".to_vec(),
        b"\xff\xfe".to_vec(),
        Vec::new(),
        [json("[24,64]"), vec![b' '; 4 << 10]].concat(),
    ] {
        is_unchecked(of(BNB, weight(), state(nf4, bytes)));
    }
    is_unchecked(of("null", weight(), state(nf4, json("[24,64]"))));
    let stored = zeros("m.weight", Dtype::BF16, &[24 * 64 / 4, 1]);
    is_unchecked(of("null", stored, state(nf4, json("[24,64]"))));
}

#[test]
fn weights_of_8_bits() {
    let int8 = || zeros("m.weight", Dtype::I8, &[24, 64]);
    let column = zeros("m.SCB", Dtype::F32, &[24]);
    let bnb = r#"{"quant_method":"bitsandbytes","load_in_8bit":true}"#;
    is_known(checkpoint(bnb, &[int8(), column.clone()]), 24, 64);
    is_unchecked(checkpoint(bnb, &[int8()]));
    is_unchecked(checkpoint("null", &[int8(), column]));

    let scale = zeros("m.weight_scale", Dtype::BF16, &[24, 1]);
    let tensors = |format: &str| {
        let config = format!(r#"{{"quant_method":"compressed-tensors","format":"{format}"}}"#);
        checkpoint(&config, &[int8(), scale.clone()])
    };
    is_known(tensors("int-quantized"), 24, 64);
    is_unchecked(tensors("dense"));

    for (config, scale, shape) in [
        (r#"{"quant_method":"fp8"}"#, "m.weight_scale_inv", [1, 1]),
        (
            r#"{"quant_method":"fbgemm_fp8"}"#,
            "m.weight_scale",
            [24, 1],
        ),
        (
            r#"{"quant_method":"compressed-tensors","format":"float-quantized"}"#,
            "m.weight_scale",
            [24, 1],
        ),
    ] {
        let weight = zeros("m.weight", Dtype::F8_E4M3, &[24, 64]);
        let scale = zeros(scale, Dtype::F32, &shape);
        is_known(checkpoint(config, &[weight, scale]), 24, 64);
    }
}

#[test]
fn packed_by_compressed_tensors() {
    let config = r#"{"quant_method":"compressed-tensors","format":"pack-quantized"}"#;
    let packed = || zeros("m.weight_packed", Dtype::I32, &[24, 8]);
    let scale = || zeros("m.weight_scale", Dtype::BF16, &[24, 2]);
    let of = |dtype, bytes: Vec<u8>| {
        let shape = ("m.weight_shape", dtype, vec![2], bytes);
        checkpoint(config, &[packed(), scale(), shape])
    };
    let long = |shape: [i64; 2]| of(Dtype::I64, shape.map(i64::to_le_bytes).concat());
    is_known(long([24, 63]), 24, 63);
    is_known(
        of(Dtype::I32, [24i32, 63].map(i32::to_le_bytes).concat()),
        24,
        63,
    );
    is_unchecked(long([23, 63]));
    is_unchecked(long([24, -63]));
    is_unchecked(of(Dtype::F32, vec![0; 8]));
    is_unchecked(checkpoint(config, &[packed(), scale()]));
}

/// Features are those of the whole, where the tensors that tell them say how they were cut.
#[test]
fn quantised_parts() {
    let gptq = r#"{"quant_method":"gptq","bits":4}"#;
    let tensors = [
        zeros("m.qweight", Dtype::I32, &[8, 12]),
        zeros("m.scales", Dtype::F16, &[2, 12]),
        zeros("m.g_idx", Dtype::I32, &[64]),
    ];
    let cut = |columns: &[&str]| {
        let (dir, whole) = checkpoint(gptq, &tensors);
        let shard = Shard {
            dim: 1,
            rank: 0,
            world: 2,
        };
        let part = whole.shards(|t| columns.contains(&t.name()).then_some(shard));
        (dir, part.unwrap())
    };
    is_known(cut(&["m.qweight", "m.scales"]), 24, 64);
    is_known(cut(&[]), 12, 64);
    is_unchecked(cut(&["m.qweight"]));
    let rows = |names: [&str; 2]| {
        let (dir, whole) = checkpoint(gptq, &tensors);
        let shard = Shard {
            dim: 0,
            rank: 1,
            world: 2,
        };
        let part = whole.shards(|t| names.contains(&t.name()).then_some(shard));
        (dir, part.unwrap())
    };
    is_known(rows(["m.qweight", "m.g_idx"]), 12, 128);

    // What bitsandbytes writes down is the whole's, or the part's: nobody says.
    let bnb = r#"{"quant_method":"bitsandbytes"}"#;
    let state = br#"{"shape":[24,64]}"#.to_vec();
    let name = "m.weight.quant_state.bitsandbytes__nf4";
    let state = (name, Dtype::U8, vec![state.len()], state);
    let weight = zeros("m.weight", Dtype::U8, &[768, 1]);
    let (dir, whole) = checkpoint(bnb, &[weight, state]);
    let shard = Shard {
        dim: 0,
        rank: 0,
        world: 2,
    };
    let part = whole.shards(|t| (t.name() == "m.weight").then_some(shard));
    is_unchecked((dir, part.unwrap()));
}

#[test]
fn the_engine_knows_best() {
    // Fused here, apart in the adapter; and a matrix that means something else.
    let qkv = zeros("a.qkv.weight", Dtype::F16, &[12, 4]);
    let odd = zeros("m.weight", Dtype::F16, &[4, 24]);
    let given = [("a.q", 4, 4), ("a.k", 4, 4), ("m", 24, 4)];
    let (_dir, source) = checkpoint("null", &[qkv, odd]);
    let source = source.modules(given);
    let registry = registry();
    let base = registry.publish("base", source).unwrap();
    for (module, outputs, inputs) in given {
        assert_eq!(features(&registry, base, module), Some((outputs, inputs)));
        let fits = lora(module, outputs, inputs).on(base);
        registry.publish(module, fits).unwrap();
    }
    let v = registry.publish("v", lora("a.v", 4, 4).on(base));
    assert!(v.unwrap_err().to_string().contains("no tensor"));
    let wrong = registry.publish("wrong", lora("m", 4, 24).on(base));
    assert!(matches!(
        wrong.unwrap_err().error(),
        Error::AdapterMismatch { .. }
    ));
    // Two tables are two layouts, though the tensors are the same; the contents are what they are.
    let set = |outputs| {
        let set = InMemory::new().tensor("m.q", Dtype::U8, [1], [1]);
        set.unwrap().module("m", outputs, 4)
    };
    let (one, other) = (
        registry.publish("one", set(1)).unwrap(),
        registry.publish("other", set(2)).unwrap(),
    );
    let lease = registry.acquire([one, other]).unwrap();
    let (one, other) = (lease.set(one).unwrap(), lease.set(other).unwrap());
    assert_ne!(one.layout(), other.layout());
    assert_eq!(one.identity(), other.identity());
    assert_eq!(one.layout().module_features("m"), Some((1, 4)));
}

/// A base may get a generation whose modules are not known; its adapter then says so.
#[test]
fn the_check_is_done_again_with_every_base() {
    let registry = registry();
    let dense = || InMemory::new().tensor("m.weight", Dtype::F16, [3, 5], vec![0; 30]);
    let packed = InMemory::new().tensor("m.packed", Dtype::U8, [8], [0; 8]);
    let base = registry.publish("base", dense().unwrap()).unwrap();
    let adapter = registry.publish("on", lora("m", 3, 5).on(base)).unwrap();
    let unchecked = || registry.scope(|at| at.get(adapter).unwrap().unchecked_modules().count());
    assert_eq!(unchecked(), 0);
    let mut both = registry.transaction();
    both.replace(base, registry.stage(packed.unwrap()).unwrap())
        .unwrap();
    let next = both.stage(lora("m", 9, 9).on(base)).unwrap();
    both.replace(adapter, next).unwrap();
    both.commit().unwrap();
    assert_eq!(unchecked(), 1);
}

#[test]
fn replacements_are_linked_to_what_they_replace() {
    let registry = registry();
    let base = InMemory::new()
        .tensor("m.weight", Dtype::F16, [3, 5], vec![0; 30])
        .and_then(|set| set.tensor("head.weight", Dtype::F16, [4, 5], vec![0; 40]))
        .and_then(|set| set.tensor("head.bias", Dtype::F16, [4], vec![0; 8]))
        .and_then(|set| set.tensor("norm.weight", Dtype::F16, [5], vec![0; 10]))
        .and_then(|set| set.tensor("q.qweight", Dtype::I32, [1, 1], vec![0; 4]))
        .unwrap();
    let base = registry.publish("base", base).unwrap();
    let adapter = lora("m", 3, 5)
        .replacement("head.weight", Dtype::F32, [6, 5], vec![1; 120])
        .and_then(|set| set.replacement("head.bias", Dtype::F16, [6], vec![2; 12]))
        .and_then(|set| set.replacement("norm.weight", Dtype::F32, [5], vec![3; 20]))
        .and_then(|set| set.replacement("q.weight", Dtype::F16, [9, 9], vec![4; 162]))
        .and_then(|set| set.replacement("score.weight", Dtype::F16, [2, 5], vec![5; 20]))
        .unwrap()
        .on(base);
    let adapter = registry.publish("adapter", adapter).unwrap();
    let lease = registry.acquire([base, adapter]).unwrap();
    let set = lease.set(adapter).unwrap();
    let view = set.adapter().unwrap();
    let all: Vec<_> = view.replacements().map(Result::unwrap).collect();
    let told: Vec<_> = all
        .iter()
        .map(|one| (one.base_tensor, one.fit, one.weight.bytes()[0]))
        .collect();
    assert_eq!(
        told,
        [
            ("head.bias", ReplacementFit::Resized, 2),
            ("head.weight", ReplacementFit::Resized, 1),
            ("norm.weight", ReplacementFit::SameShape, 3),
            ("q.weight", ReplacementFit::Unchecked, 4),
            ("score.weight", ReplacementFit::Added, 5),
        ]
    );
    let head = view.replacement("head.weight").unwrap().unwrap();
    assert_eq!(head.weight.kind(), WeightKind::Replacement);
    assert_eq!(
        (head.weight.dtype(), head.weight.shape()),
        (Dtype::F32, &[6, 5][..])
    );
    assert_eq!(head.weight.info().replaces(), Some("head.weight"));
    assert_eq!(head.weight.name(), "base_model.model.head.weight");
    assert!(view.replacement("m.weight").unwrap().is_none());
    assert_eq!(view.len(), 1, "a replacement is no module");
}

#[test]
fn a_replacement_that_no_resize_explains_is_refused() {
    let registry = registry();
    let base = registry.publish("tiny", tiny()).unwrap();
    let embedding = "model.embed_tokens.weight";
    for (tensor, shape) in [
        (embedding, vec![130, 95]),
        (embedding, vec![130 * 96]),
        (embedding, vec![130, 96, 1]),
        ("model.norm.weight", vec![97]),
    ] {
        let bytes = vec![0; 4 * shape.iter().product::<usize>()];
        let set = InMemory::new().replacement(tensor, Dtype::F32, &shape, bytes);
        let refused = registry.publish("x", set.unwrap().on(base)).unwrap_err();
        let text = refused.to_string();
        assert!(
            matches!(refused.error(), Error::AdapterMismatch { .. }),
            "{text}"
        );
        assert!(
            text.contains(&format!("{shape:?}")) && text.contains("96"),
            "{text}"
        );
    }
    assert_eq!(registry.ledger().reserved, 0);
    // Two for one, in memory.
    let one = InMemory::new().replacement("head.weight", Dtype::U8, [1], [0]);
    let two = one
        .unwrap()
        .replacement("head.base_layer.weight", Dtype::U8, [1], [0]);
    assert!(two.unwrap_err().to_string().contains("head.weight"));
    // And an adapter of replacements alone wants a base, as every adapter does.
    let alone = InMemory::new().replacement("score.weight", Dtype::U8, [1, 1], [0]);
    let refused = registry.stage(alone.unwrap()).unwrap_err();
    assert!(matches!(refused, Error::AdapterWithoutBase { .. }));
}

/// An adapter on disk as PEFT saves it: a classifier of its own, and LoRA on a head whose vocabulary
/// had been extended.
#[test]
fn peft_saves_heads_under_their_own_names() {
    let dir = tempfile::tempdir().unwrap();
    let config = r#"{"peft_type":"LORA","r":2,"lora_alpha":4,"modules_to_save":["score"]}"#;
    std::fs::write(dir.path().join("adapter_config.json"), config).unwrap();
    let f32 = Dtype::F32;
    let of = |rows: usize, head: &'static str| {
        let path = dir.path().join("adapter_model.safetensors");
        let tensors = [
            zeros("base_model.model.score.weight", f32, &[7, 96]),
            zeros(head, f32, &[132, 96]),
            zeros("base_model.model.lm_head.lora_A.weight", f32, &[2, 96]),
            zeros("base_model.model.lm_head.lora_B.weight", f32, &[rows, 2]),
        ];
        write(&path, &tensors);
        PeftAdapter::open(dir.path())
    };
    let registry = registry();
    let base = registry.publish("tiny", tiny()).unwrap();
    let layer = "base_model.model.lm_head.base_layer.weight";
    let adapter = of(132, layer).unwrap().on(base);
    let adapter = registry.publish("adapter", adapter).unwrap();
    let lease = registry.acquire([base, adapter]).unwrap();
    let view = lease.set(adapter).unwrap().adapter().unwrap();
    let told = view.replacements().map(|one| {
        let one = one.unwrap();
        (one.base_tensor, one.fit)
    });
    assert_eq!(
        told.collect::<Vec<_>>(),
        [
            ("lm_head.weight", ReplacementFit::Resized),
            ("score.weight", ReplacementFit::Added),
        ]
    );
    // LoRA goes on the head that comes with it, not on the base's.
    let refused = registry.publish("other", of(130, layer).unwrap().on(base));
    let text = refused.unwrap_err().to_string();
    assert!(text.contains("130") && text.contains("132"), "{text}");
}

#[test]
fn real_adapters_are_checked_in_full() {
    let registry = registry();
    let base = registry.publish("tiny", tiny()).unwrap();
    let lease = registry.acquire(base).unwrap();
    let layout = lease.set(base).unwrap().layout();
    for name in ["pirate-v1", "pirate-v2", "robot", "shout", "ranked"] {
        let adapter = PeftAdapter::open(fixture("adapters").join(name)).unwrap();
        let fit = adapter.plan().check_fit(layout).unwrap();
        assert_eq!((fit.unchecked().len(), fit.replacements().len()), (0, 0));
    }
    let linear = |module| match layout.module_table().get(module) {
        Some(Module::Linear(linear)) => linear,
        other => panic!("{other:?}"),
    };
    let q: Linear = linear("model.layers.0.self_attn.q_proj");
    assert_eq!((q.outputs(), q.inputs()), (96, 96));
}

/// The first name below a module's is the module's with a dot, and nothing.
#[test]
fn the_shortest_name_below_a_module() {
    let registry = registry();
    let odd = InMemory::new().tensor("p.", Dtype::U8, [1], [0]).unwrap();
    let set = registry.publish("odd", odd).unwrap();
    let lease = registry.acquire(set).unwrap();
    let table = lease.set(set).unwrap().layout().module_table();
    assert_eq!(table.get("p"), Some(Module::Unchecked));
    assert_eq!(table.get("q"), None);
}
