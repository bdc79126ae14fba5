//! Configurations of PEFT adapters.
//!
//! The input is `adapter_config.json`. It is read here a second time, every key of a pattern as the
//! regular expression that PEFT makes of it, and an adapter of a few modules is written that has the
//! ranks which follow. So the adapter must open, with those ranks, alphas and scalings, or be refused
//! for a reason that is seen here, too.

use regex_lite::RegexBuilder;
use weighbridge::source::{PeftAdapter, Source};

use super::ground::{file_of, folder, header_of, pattern, refusal, write};
use super::ordered::{Ordered, distinct, members, only};

/// What patterns are to tell apart.
const MODULES: [&str; 7] = [
    "model.layers.0.self_attn.q_proj",
    "model.layers.1.mlp.down_proj",
    "model.layers.1.self_attn.q_proj",
    "model.layers.11.self_attn.v_proj",
    "model.layersX1.self_attn.v_proj",
    "q_proj",
    "xq_proj",
];
/// Greater ranks are not written.
const MADE: f64 = 32.0;
/// What says nothing about the numbers of an adapter, or is used.
const KNOWN: [&str; 27] = [
    "alpha_pattern",
    "auto_mapping",
    "base_model_name_or_path",
    "bias",
    "corda_config",
    "eva_config",
    "exclude_modules",
    "inference_mode",
    "init_lora_weights",
    "layers_pattern",
    "layers_to_transform",
    "loftq_config",
    "lora_alpha",
    "lora_dropout",
    "lora_ga_config",
    "megatron_config",
    "megatron_core",
    "modules_to_save",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "r",
    "rank_pattern",
    "revision",
    "runtime_config",
    "target_modules",
    "task_type",
];

/// Rank, alpha and scaling of a module.
type Scale = (f64, f64, f64);

pub fn run(config: &[u8]) {
    let document = members(config);
    let expected = document.as_deref().and_then(scales);
    let made = |(rank, _, _): &Scale| *rank <= MADE;
    let whole = expected.as_ref().filter(|scales| scales.iter().all(made));
    let ranks = whole.map_or(vec![1; MODULES.len()], |scales| {
        scales.iter().map(|scale| scale.0 as usize).collect()
    });
    match (open(config, &ranks), whole) {
        (Ok(opened), Some(expected)) => {
            let document = document.as_deref().unwrap_or_default();
            assert!(
                document.iter().all(implemented),
                "it has what is not implemented"
            );
            compare(&opened, expected);
        }
        (Ok(opened), None) => panic!("accepted: {:?} of {opened:?}", expected),
        (Err(text), Some(_)) => assert!(explained(&text, document.as_deref()), "{text}"),
        (Err(_), None) => {}
    }
}

/// Opens an adapter of all modules with this configuration.
fn open(config: &[u8], ranks: &[usize]) -> Result<PeftAdapter, String> {
    let dir = folder();
    write(&dir.path().join("adapter_config.json"), config);
    let names = MODULES.map(|module| {
        ["A", "B"].map(|part| format!("base_model.model.{module}.lora_{part}.weight"))
    });
    let pairs = names.iter().zip(ranks);
    let tensors = pairs.flat_map(|([a, b], &rank)| [(&**a, vec![rank, 2]), (&**b, vec![3, rank])]);
    let (header, data) = header_of(tensors);
    write(
        &dir.path().join("adapter_model.safetensors"),
        &file_of(&header, &pattern(data)),
    );
    PeftAdapter::open(dir.path()).map_err(|error| refusal(&error))
}

/// What the configuration makes of each module; `None` if it is none, or not right.
fn scales(document: &[(String, Ordered)]) -> Option<Vec<Scale>> {
    let number = |name| match only(document, name)? {
        Ordered::Number(number) => Some(*number),
        _ => None,
    };
    let kind = Ordered::Text("LORA".to_owned());
    let (rank, alpha) = (number("r")?, number("lora_alpha")?);
    let there = |name: &str| document.iter().any(|(key, _)| key == name);
    let stabilised = match only(document, "use_rslora") {
        None | Some(Ordered::Null) => false,
        Some(Ordered::Flag(flag)) => *flag,
        Some(_) => return None,
    };
    let table = |name: &str| match only(document, name) {
        None if there(name) => None,
        None | Some(Ordered::Null) => Some(Vec::new()),
        Some(Ordered::Table(entries)) => keys(entries),
        Some(_) => None,
    };
    let (ranks, alphas) = (table("rank_pattern")?, table("alpha_pattern")?);
    let legal = distinct(document.iter().map(|(key, _)| &**key))
        && only(document, "peft_type") == Some(&kind)
        && is_rank(rank)
        && ranks.iter().all(|(_, rank)| is_rank(*rank));
    let scale = |module: &&str| {
        let (rank, alpha) = (pick(&ranks, module, rank), pick(&alphas, module, alpha));
        let by = if stabilised { rank.sqrt() } else { rank };
        (rank, alpha, alpha / by)
    };
    legal.then(|| MODULES.iter().map(scale).collect())
}

fn is_rank(rank: f64) -> bool {
    rank >= 1.0 && rank <= f64::from(u32::MAX) && rank.fract() == 0.0
}

/// The keys of a table as PEFT matches them.
fn keys(entries: &[(String, Ordered)]) -> Option<Vec<(regex_lite::Regex, f64)>> {
    if !distinct(entries.iter().map(|(key, _)| &**key)) {
        return None;
    }
    let key = |(key, value): &(String, Ordered)| {
        let Ordered::Number(value) = value else {
            return None;
        };
        let whole = RegexBuilder::new(&format!(r"^(.*\.)?({key})$"))
            .size_limit(64 << 10)
            .build();
        Some((whole.ok()?, *value))
    };
    entries.iter().map(key).collect()
}

/// The value of the first key that matches.
fn pick(keys: &[(regex_lite::Regex, f64)], module: &str, otherwise: f64) -> f64 {
    let first = keys.iter().find(|(key, _)| key.is_match(module));
    first.map_or(otherwise, |&(_, value)| value)
}

fn compare(opened: &PeftAdapter, expected: &[Scale]) {
    let plan = opened.plan().adapter().expect("it is an adapter");
    let found: Vec<_> = plan.modules().collect();
    assert_eq!(found.len(), MODULES.len());
    for (((module, scale), name), &(rank, alpha, scaling)) in
        found.iter().zip(MODULES).zip(expected)
    {
        assert_eq!(*module, name);
        let found = (f64::from(scale.rank), scale.alpha, scale.scaling);
        assert_eq!(found, (rank, alpha, scaling), "{module}");
    }
}

/// Is this an option that changes nothing, or that is implemented?
fn implemented((option, value): &(String, Ordered)) -> bool {
    match (&**option, value) {
        ("bias", Ordered::Text(text)) => text == "none",
        ("bias", value) => *value == Ordered::Null,
        ("init_lora_weights", Ordered::Text(text)) => {
            ["gaussian", "eva", "orthogonal"].contains(&&**text)
        }
        ("init_lora_weights", value) => matches!(value, Ordered::Null | Ordered::Flag(_)),
        ("use_rslora", _) => true,
        (option, value) => KNOWN.contains(&option) || is_off(value),
    }
}

fn is_off(value: &Ordered) -> bool {
    match value {
        Ordered::Null => true,
        Ordered::Flag(flag) => !flag,
        Ordered::Number(_) => false,
        Ordered::Text(text) => text.is_empty(),
        Ordered::List(list) => list.is_empty(),
        Ordered::Table(table) => table.is_empty(),
    }
}

/// Is this a reason to refuse what is legal? Options that are not implemented, and what is too much.
fn explained(text: &str, document: Option<&[(String, Ordered)]>) -> bool {
    let on = |member: &(String, Ordered)| !implemented(member);
    let document = document.unwrap_or_default();
    if text.contains("is not supported") {
        return document.iter().any(on);
    }
    let too_much = [
        "more than",
        "16384 bytes",
        "too many to match",
        "size limit",
    ];
    too_much.iter().any(|words| text.contains(words))
}
