//! Sources on the real fixtures: every byte, every identity, every resolved scale.

mod support;

use serde_json::Value;
use sha2::{Digest, Sha256};
use support::{adapter, fixture, registry, tiny};
use weighbridge::source::{Checkpoint, InMemory, PeftAdapter, Source};
use weighbridge::{Dtype, Error, Identity, WeightKind};

fn oracle() -> Value {
    serde_json::from_slice(&std::fs::read(fixture("expected.json")).unwrap()).unwrap()
}

fn hex(digest: impl AsRef<[u8]>) -> String {
    digest
        .as_ref()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// Reads `source` into memory and compares each tensor with the table.
fn compare(source: &impl Source, table: &Value) {
    let plan = source.plan();
    let mut arena = vec![0; plan.arena_bytes() as usize];
    source.read_into(&mut arena).unwrap();
    let table = table.as_object().unwrap();
    let own = plan
        .tensors()
        .iter()
        .filter(|tensor| tensor.kind() != WeightKind::TiedAlias);
    assert_eq!(own.clone().count(), table.len());
    for tensor in own {
        let expected = &table[tensor.name()];
        assert_eq!(tensor.dtype().name(), expected["dtype"].as_str().unwrap());
        let shape: Vec<u64> = tensor.shape().iter().map(|&dim| dim as u64).collect();
        assert_eq!(serde_json::json!(shape), expected["shape"]);
        assert_eq!(tensor.byte_len(), expected["bytes"].as_u64().unwrap());
        assert_eq!(tensor.offset() % 64, 0);
        let bytes = &arena[tensor.offset() as usize..][..tensor.byte_len() as usize];
        let digest = hex(Sha256::digest(bytes));
        assert_eq!(
            digest,
            expected["sha256"].as_str().unwrap(),
            "{}",
            tensor.name()
        );
    }
}

#[test]
fn every_tensor_of_the_checkpoint_and_its_shards() {
    compare(&tiny(), &oracle()["tensors"]);
    let sharded = Checkpoint::open(fixture("tiny-llama-sharded")).unwrap();
    compare(&sharded, &oracle()["tensors"]);
}

#[test]
fn every_tensor_and_every_module_of_each_adapter() {
    for (name, table) in oracle()["adapters"].as_object().unwrap() {
        let source = PeftAdapter::open(fixture("adapters").join(name)).unwrap();
        compare(&source, &table["tensors"]);
        let modules = table["modules"].as_object().unwrap();
        let plan = source.plan().adapter().unwrap();
        assert_eq!(plan.len(), modules.len());
        for (module, scale) in plan.modules() {
            let expected = &modules[module];
            assert_eq!(
                u64::from(scale.rank),
                expected["r"].as_u64().unwrap(),
                "{module}"
            );
            assert_eq!(scale.alpha, expected["alpha"].as_f64().unwrap(), "{module}");
            let difference = scale.scaling - expected["scaling"].as_f64().unwrap();
            assert!(difference.abs() < 1e-12, "{module}: off by {difference}");
        }
    }
}

#[test]
fn plans_are_exact_and_known_before_anything_is_read() {
    let registry = registry();
    let source = tiny();
    let (arena, charged) = (source.plan().arena_bytes(), source.plan().charged_bytes());
    let base = registry.publish("tiny", source).unwrap();
    assert_eq!(registry.ledger().resident, charged);
    assert_eq!(
        arena, 837_696,
        "every tensor's length is a multiple of 64, the tie counts once"
    );
    let lease = registry.acquire(base).unwrap();
    let set = lease.set(base).unwrap();
    assert_eq!(set.bytes(), charged);
}

#[test]
fn a_tied_head_is_the_embedding_once() {
    let registry = registry();
    let base = registry.publish("tiny", tiny()).unwrap();
    let lease = registry.acquire(base).unwrap();
    let set = lease.set(base).unwrap();
    let embedding = set.get("model.embed_tokens.weight").unwrap();
    let head = set.get("lm_head.weight").unwrap();
    assert_eq!(head.bytes().as_ptr(), embedding.bytes().as_ptr());
    assert_eq!(
        (head.kind(), embedding.kind()),
        (WeightKind::TiedAlias, WeightKind::Base)
    );
    let tie = set
        .layout()
        .tensor(set.layout().ordinal("lm_head.weight").unwrap())
        .unwrap()
        .tie();
    assert_eq!(tie, set.layout().ordinal("model.embed_tokens.weight"));
}

fn identity(source: impl Source) -> Identity {
    registry().stage(source).unwrap().identity().clone()
}

/// Fixed for ever: identities are compared across hosts and releases.
#[test]
fn content_identities_are_what_they_always_were() {
    let one = InMemory::new()
        .tensor("b", Dtype::F32, [2], [1, 2, 3, 4, 5, 6, 7, 8])
        .unwrap()
        .tensor("a", Dtype::U8, [1, 3], [9, 9, 9])
        .unwrap();
    // The format once more, by hand.
    let mut hasher = blake3::Hasher::new();
    let number = |hasher: &mut blake3::Hasher, n: u64| {
        hasher.update(&n.to_le_bytes());
    };
    let text = |hasher: &mut blake3::Hasher, t: &str| {
        number(hasher, t.len() as u64);
        hasher.update(t.as_bytes());
    };
    hasher.update(b"weighbridge content v1");
    number(&mut hasher, 2);
    for (name, dtype, shape, bytes) in [
        ("a", "U8", &[1u64, 3][..], &[9u8; 3][..]),
        ("b", "F32", &[2], &[1, 2, 3, 4, 5, 6, 7, 8]),
    ] {
        text(&mut hasher, name);
        text(&mut hasher, dtype);
        number(&mut hasher, shape.len() as u64);
        shape.iter().for_each(|&dim| number(&mut hasher, dim));
        hasher.update(blake3::hash(bytes).as_bytes());
    }
    assert_eq!(
        identity(one),
        Identity::Content(*hasher.finalize().as_bytes())
    );
    let golden = "blake3:d51cc72dcdbfc87f4a3eef0655c851266640e6fc18f406694c81f0bb71599242";
    assert_eq!(identity(tiny()).to_string(), golden);
}

#[test]
fn the_same_contents_have_the_same_identity_however_they_are_stored() {
    let sharded = Checkpoint::open(fixture("tiny-llama-sharded")).unwrap();
    assert_eq!(identity(sharded), identity(tiny()));
    // With the tied head stored as a tensor of its own.
    let dir = tempfile::tempdir().unwrap();
    let stored = with_stored_head(dir.path(), |_| {});
    let plan_bytes = stored.plan().arena_bytes();
    assert_eq!(
        plan_bytes,
        tiny().plan().arena_bytes(),
        "the copy is kept once"
    );
    assert_eq!(identity(stored), identity(tiny()));
}

/// The tiny checkpoint with `lm_head.weight` stored, its bytes changed by `change`.
fn with_stored_head(dir: &std::path::Path, change: impl Fn(&mut Vec<u8>)) -> Checkpoint {
    open_stored_head(dir, change).unwrap()
}

fn open_stored_head(
    dir: &std::path::Path,
    change: impl Fn(&mut Vec<u8>),
) -> Result<Checkpoint, Error> {
    let bytes = std::fs::read(fixture("tiny-llama/model.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let mut tensors: Vec<(String, Dtype, Vec<usize>, Vec<u8>)> = file
        .iter()
        .map(|(name, view)| {
            (
                name.to_owned(),
                view.dtype(),
                view.shape().to_vec(),
                view.data().to_vec(),
            )
        })
        .collect();
    let (_, dtype, shape, mut head) = tensors
        .iter()
        .find(|tensor| tensor.0 == "model.embed_tokens.weight")
        .unwrap()
        .clone();
    change(&mut head);
    tensors.push(("lm_head.weight".to_owned(), dtype, shape, head));
    let views = tensors.iter().map(|(name, dtype, shape, data)| {
        let view = safetensors::tensor::TensorView::new(*dtype, shape.clone(), data).unwrap();
        (name.as_str(), view)
    });
    let written = safetensors::serialize(views, None).unwrap();
    std::fs::write(dir.join("model.safetensors"), written).unwrap();
    std::fs::copy(fixture("tiny-llama/config.json"), dir.join("config.json")).unwrap();
    Checkpoint::open(dir)
}

#[test]
fn a_tied_head_that_differs_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let refused = open_stored_head(dir.path(), |head| *head.last_mut().unwrap() ^= 1).unwrap_err();
    let text = refused.to_string();
    assert!(
        refused.is_malformed() && text.contains("lm_head.weight"),
        "{text}"
    );
}

/// Read in pieces of 4 MiB, each to its place.
#[test]
fn a_tensor_of_several_reads_is_whole() {
    const LEN: usize = (9 << 20) + 3;
    let dir = tempfile::tempdir().unwrap();
    let bytes: Vec<u8> = (0..LEN).map(|at| (at * 7 / 3 % 251) as u8).collect();
    let tensor = safetensors::tensor::TensorView::new(Dtype::U8, vec![LEN], &bytes).unwrap();
    let file = safetensors::serialize([("w", tensor)], None).unwrap();
    std::fs::write(dir.path().join("model.safetensors"), file).unwrap();
    let registry = registry();
    let set = registry
        .publish("s", Checkpoint::open(dir.path()).unwrap())
        .unwrap();
    let lease = registry.acquire(set).unwrap();
    assert!(lease.set(set).unwrap().get("w").unwrap().bytes() == bytes);
}

/// Both are read in pieces, from wherever they are in the file: 300 KiB each, and 5 bytes.
#[test]
fn a_tied_head_is_compared_from_its_first_byte_to_its_last() {
    const LEN: usize = (300 << 10) + 5;
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(
        dir.path().join("config.json"),
        r#"{"tie_word_embeddings":true}"#,
    )
    .unwrap();
    let embedding: Vec<u8> = (0..LEN).map(|at| (at * 7 / 3 % 251) as u8).collect();
    let open = |head: &[u8]| {
        let tensor = |data| safetensors::tensor::TensorView::new(Dtype::U8, vec![LEN], data);
        let views = [
            ("lm_head.weight", tensor(head).unwrap()),
            ("model.embed_tokens.weight", tensor(&embedding).unwrap()),
        ];
        let file = safetensors::serialize(views, None).unwrap();
        std::fs::write(dir.path().join("model.safetensors"), file).unwrap();
        Checkpoint::open(dir.path())
    };
    let same = open(&embedding).unwrap();
    assert_eq!(same.plan().arena_bytes(), (LEN as u64).next_multiple_of(64));
    for at in [0, (128 << 10) - 1, 128 << 10, (256 << 10) + 1, LEN - 1] {
        let mut head = embedding.clone();
        head[at] ^= 1;
        let refused = open(&head).expect_err(&format!("byte {at}"));
        assert!(refused.to_string().contains("other bytes"), "{refused}");
    }
}

#[test]
fn a_checkpoint_s_own_alias() {
    let registry = registry();
    let owner = registry.publish("owner", tiny()).unwrap();
    let norm = registry.weight_handle(owner, "model.norm.weight").unwrap();
    let tensors = tiny().plan().tensors().len();
    let linked = tiny().alias("linked", norm).unwrap();
    assert_eq!(linked.plan().aliases().len(), 1);
    assert_eq!(linked.plan().tensors().len(), tensors);
    let set = registry.publish("linked", linked).unwrap();
    let lease = registry.acquire([owner, set]).unwrap();
    let [one, other] = [(owner, "model.norm.weight"), (set, "linked")]
        .map(|(set, name)| lease.set(set).unwrap().get(name).unwrap().bytes().as_ptr());
    assert_eq!(one, other);
}

#[test]
fn identities_tell_versions_scales_and_declarations_apart() {
    let registry = registry();
    let base = registry.publish("tiny", tiny()).unwrap();
    let of = |name| {
        registry
            .stage(adapter(name, base))
            .unwrap()
            .identity()
            .clone()
    };
    assert_ne!(of("pirate-v1"), of("pirate-v2"));
    assert_eq!(of("pirate-v1"), of("pirate-v1"));
    // The same tensors under another alpha are another adapter.
    let dir = tempfile::tempdir().unwrap();
    let from = fixture("adapters/pirate-v1");
    for file in ["adapter_config.json", "adapter_model.safetensors"] {
        std::fs::copy(from.join(file), dir.path().join(file)).unwrap();
    }
    let config = std::fs::read_to_string(from.join("adapter_config.json")).unwrap();
    let config = config.replace("\"lora_alpha\": 16", "\"lora_alpha\": 17");
    std::fs::write(dir.path().join("adapter_config.json"), config).unwrap();
    let rescaled = PeftAdapter::open(dir.path()).unwrap().on(base);
    assert_ne!(
        registry.stage(rescaled).unwrap().identity(),
        &of("pirate-v1")
    );
    let declared = registry.stage(tiny().declared("rev-1")).unwrap();
    assert_eq!(declared.identity(), &Identity::Declared("rev-1".into()));
}

#[test]
fn a_lease_can_be_written_back_as_safetensors() {
    let registry = registry();
    let base = registry.publish("tiny", tiny()).unwrap();
    let lease = registry.acquire(base).unwrap();
    let set = lease.set(base).unwrap();
    let own = set
        .iter()
        .map(Result::unwrap)
        .filter(|w| w.kind() == WeightKind::Base);
    let written = safetensors::serialize(own.map(|w| (w.name(), w)), None).unwrap();
    let again = InMemory::from_safetensors(&written).unwrap();
    compare(&again, &oracle()["tensors"]);
}

#[test]
fn an_unknown_dtype_makes_its_tensor_unreadable_not_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let header = br#"{"new":{"dtype":"NVFP4","shape":[7],"data_offsets":[0,5]},"old":{"dtype":"U8","shape":[2],"data_offsets":[5,7]}}"#;
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header);
    file.extend_from_slice(&[1, 2, 3, 4, 5, 6, 7]);
    let path = dir.path().join("x.safetensors");
    std::fs::write(&path, file).unwrap();
    let registry = registry();
    let set = registry
        .publish("x", Checkpoint::open(&path).unwrap())
        .unwrap();
    let lease = registry.acquire(set).unwrap();
    let set = lease.set(set).unwrap();
    assert_eq!(set.get("old").unwrap().bytes(), [6, 7]);
    let refused = set.get("new").unwrap_err();
    assert!(matches!(&refused, Error::UnreadableTensor { dtype, .. } if dtype == "NVFP4"));
    assert!(refused.is_unsupported());
    let info = set
        .layout()
        .tensor(set.layout().ordinal("new").unwrap())
        .unwrap();
    assert_eq!(
        (info.dtype(), info.dtype_name(), info.byte_len()),
        (None, "NVFP4", 5)
    );
}

#[test]
fn legal_oddities_are_accepted() {
    let dir = tempfile::tempdir().unwrap();
    // A scalar, tensors without bytes, metadata, a padded header.
    let header = br#"  {"__metadata__":{"format":"pt"},"scalar":{"dtype":"F32","shape":[],"data_offsets":[0,4]},"none":{"dtype":"F16","shape":[0,3],"data_offsets":[4,4]},"nothing":{"dtype":"I64","shape":[2,0],"data_offsets":[0,0]}}   "#;
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header);
    file.extend_from_slice(&1.5f32.to_le_bytes());
    let path = dir.path().join("x.safetensors");
    std::fs::write(&path, file).unwrap();
    let registry = registry();
    let set = registry
        .publish("x", Checkpoint::open(&path).unwrap())
        .unwrap();
    let lease = registry.acquire(set).unwrap();
    let set = lease.set(set).unwrap();
    assert_eq!(set.get("scalar").unwrap().bytes(), 1.5f32.to_le_bytes());
    assert!(set.get("scalar").unwrap().shape().is_empty());
    assert!(set.get("none").unwrap().bytes().is_empty());
    assert_eq!(set.get("nothing").unwrap().shape(), [2, 0]);
    registry.publish("empty", InMemory::new()).unwrap();
}

/// Which matrix is which, and what it was declared to be.
#[test]
fn what_an_adapter_says_of_itself() {
    for name in ["pirate-v1", "ranked", "shout"] {
        let source = PeftAdapter::open(fixture("adapters").join(name)).unwrap();
        assert_eq!(Source::declared(&source), None);
        let mut matrices = 0;
        for tensor in source.plan().tensors() {
            let expected = if tensor.name().ends_with(".lora_A.weight") {
                WeightKind::LoraA
            } else if tensor.name().ends_with(".lora_B.weight") {
                WeightKind::LoraB
            } else {
                continue;
            };
            assert_eq!(tensor.kind(), expected, "{}", tensor.name());
            matrices += 1;
        }
        assert!(matrices >= 2 && matrices % 2 == 0, "{matrices}");
        let declared = PeftAdapter::declared(source, "r1");
        assert_eq!(Source::declared(&declared), Some("r1"));
    }
}
