//! Names: of sets, of weights that are registered flat, of tensors, of modules.
//!
//! The input is a namespace and a name, with a byte between them that no text has (255). A name that is
//! accepted is found by itself and by nothing else, and comes back from everything that prints it; one
//! that is refused leaves no trace.

use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use weighbridge::flat::FlatRegistry;
use weighbridge::source::{InMemory, PeftAdapter, Source};
use weighbridge::{Dtype, Error, SetName, WeightRegistry};

use super::ground::{file_of, folder, header_of, pattern, refusal, write};

const BETWEEN: u8 = 255;
/// Longest name of a set, and of a tensor in a file.
const CAP: usize = 512;
/// What the name of a module does not have: PEFT's own words.
const WRAPPERS: [&str; 5] = [
    ".lora_",
    ".trainable_tokens_",
    ".modules_to_save.",
    ".original_module.",
    ".base_layer.",
];

/// One test at a time has it.
static REGISTRY: LazyLock<Mutex<Arc<WeightRegistry>>> = LazyLock::new(|| {
    let registry = WeightRegistry::builder().limit_bytes(1 << 16).build();
    Mutex::new(Arc::new(registry.expect("a registry")))
});

pub fn run(data: &[u8]) {
    let (namespace, name) = match data.iter().position(|&byte| byte == BETWEEN) {
        Some(at) => (&data[..at], &data[at + 1..]),
        None => (&[][..], data),
    };
    let (namespace, name) = (
        String::from_utf8_lossy(namespace),
        String::from_utf8_lossy(name),
    );
    let registry = REGISTRY.lock().unwrap_or_else(PoisonError::into_inner);
    set(&registry, &namespace, &name);
    flat(&registry, &namespace, &name);
    tensor(&registry, &name);
    key(&name);
}

/// A set without bytes: so that nothing comes back on another thread, which would be waited for.
fn empty() -> InMemory {
    let tensor = InMemory::new().tensor("w", Dtype::U8, [0], []);
    tensor.expect("a legal tensor")
}

fn is_part(part: &str) -> bool {
    part.len() <= CAP && !part.chars().any(char::is_control)
}

/// Nothing is there: no name, no byte.
fn nothing(registry: &WeightRegistry) {
    assert_eq!(registry.stats().sets, 0);
    assert_eq!(registry.ledger().total(), 0);
    assert!(registry.catalog().entries().is_empty());
}

fn set(registry: &WeightRegistry, namespace: &str, name: &str) {
    let full = SetName::from((namespace, name));
    let legal = !name.is_empty() && is_part(name) && is_part(namespace);
    assert_eq!(full.validate().is_ok(), legal, "{full:?}");
    prints(&full);
    let set = match registry.publish((namespace, name), empty()) {
        Ok(set) => set,
        Err(refused) => {
            assert!(!legal, "{refused}");
            invalid(refused.error());
            return nothing(registry);
        }
    };
    assert!(legal, "{full:?} is accepted");
    assert_eq!(registry.lookup((namespace, name)), Some(set));
    let catalog = registry.catalog();
    let entry = catalog.get((namespace, name)).expect("it is there");
    assert_eq!((&entry.name, catalog.entries().len()), (&full, 1));
    let json: serde_json::Value = serde_json::from_str(&catalog.to_json()).expect("JSON");
    let shown = &json["sets"][0];
    assert_eq!(
        (shown["namespace"].as_str(), shown["name"].as_str()),
        (Some(namespace), Some(name))
    );
    others(registry, namespace, name);
    registry.retire(set).expect("it is there");
    nothing(registry);
}

/// Names of the same text that are split elsewhere mean nothing.
fn others(registry: &WeightRegistry, namespace: &str, name: &str) {
    let text = [namespace, name].concat();
    for split in (0..=text.len()).filter(|&at| text.is_char_boundary(at)) {
        let other = text.split_at(split);
        let is_it = split == namespace.len();
        assert_eq!(registry.lookup(other).is_some(), is_it, "{other:?}");
    }
}

fn invalid(error: &Error) {
    assert!(matches!(error, Error::InvalidName { .. }), "{error}");
    refusal(error);
}

/// What is printed is one line that leads back to the name: so no two print alike.
fn prints(full: &SetName) {
    let shown = full.to_string();
    assert!(!shown.chars().any(char::is_control), "{shown:?}");
    let back = unprint(&shown).unwrap_or_else(|| panic!("{shown} is no name"));
    assert_eq!(
        (&*back.0, &*back.1),
        (full.namespace(), full.name()),
        "{shown}"
    );
}

/// The grammar by which names are printed, backwards: a namespace ends at the first slash that is not
/// escaped, escapes are those of Rust, and what has spaces is quoted.
fn unprint(shown: &str) -> Option<(String, String)> {
    let inside = shown
        .strip_prefix('"')
        .and_then(|rest| rest.strip_suffix('"'));
    let shown = match inside {
        Some(inside) if shown.contains(' ') => inside,
        _ => shown,
    };
    match shown.split_once('/') {
        Some((namespace, name)) => Some((unescape(namespace)?, unescape(name)?)),
        None => Some((String::new(), unescape(shown)?)),
    }
}

fn unescape(text: &str) -> Option<String> {
    let (mut plain, mut rest) = (String::new(), text);
    while let Some(char) = rest.chars().next() {
        rest = &rest[char.len_utf8()..];
        if char != '\\' {
            plain.push(char);
            continue;
        }
        let kind = rest.chars().next()?;
        rest = &rest[kind.len_utf8()..];
        plain.push(match kind {
            'n' => '\n',
            'r' => '\r',
            't' => '\t',
            '0' => '\0',
            'u' => {
                let (code, after) = rest.strip_prefix('{')?.split_once('}')?;
                rest = after;
                char::from_u32(u32::from_str_radix(code, 16).ok()?)?
            }
            '\\' | '"' | '\'' => kind,
            _ => return None,
        });
    }
    Some(plain)
}

/// The same text as the address of a weight: of the base model, and of an adapter.
fn flat(registry: &Arc<WeightRegistry>, adapter: &str, name: &str) {
    let flat = FlatRegistry::new(Arc::clone(registry));
    let legal = !name.is_empty() && is_part(name);
    let within = is_part(adapter) && "flat/".len() + adapter.len() <= CAP;
    let base = flat.register(name, Dtype::U8, [0], &[]);
    assert_eq!(base.is_ok(), legal, "{name:?}: {base:?}");
    let slice = flat.register((adapter, name), Dtype::U16, [0], &[]);
    assert_eq!(
        slice.is_ok(),
        legal && within && !adapter.is_empty(),
        "{adapter:?}: {slice:?}"
    );
    assert_eq!(
        flat.lookup(name),
        base.as_ref().ok().map(|base| base.handle())
    );
    assert_eq!(
        flat.lookup((adapter, name)),
        slice.as_ref().ok().map(|slice| slice.handle())
    );
    for weight in [base, slice] {
        match weight {
            Ok(weight) => {
                flat.unregister(weight.handle()).expect("it is there");
            }
            Err(error) => invalid(&error),
        }
    }
    assert!(flat.is_empty());
    nothing(registry);
}

/// The same text as the name of a tensor in a file.
fn tensor(registry: &WeightRegistry, name: &str) {
    let (header, data) = header_of([(name, vec![0])]);
    match InMemory::from_safetensors(&file_of(&header, &pattern(data))) {
        Ok(source) => {
            assert!(!name.is_empty() && is_part(name), "{name:?}");
            assert_eq!(source.plan().tensors()[0].name(), name);
            let set = registry.publish("s", source).expect("it was opened");
            let handle = registry.weight_handle(set, name).expect("it is there");
            let lease = registry.acquire(set).expect("it is resident");
            let weight = lease.weight(handle).expect("it is there");
            assert_eq!((weight.name(), weight.bytes()), (name, &[][..]));
            drop(lease);
            registry.retire(set).expect("it is there");
        }
        Err(error) => {
            refusal(&error);
            // Metadata is an object of strings, which a tensor is not.
            let legal = !name.is_empty() && is_part(name) && name != "__metadata__";
            assert!(!legal, "{error}");
        }
    }
    nothing(registry);
}

/// The same text as the module of an adapter.
fn key(name: &str) {
    const CONFIG: &[u8] = br#"{"peft_type":"LORA","r":1,"lora_alpha":1}"#;
    let dir = folder();
    write(&dir.path().join("adapter_config.json"), CONFIG);
    let [a, b] = ["A", "B"].map(|part| format!("base_model.model.{name}.lora_{part}.weight"));
    let (header, data) = header_of([(&*a, vec![1, 2]), (&*b, vec![3, 1])]);
    let file = file_of(&header, &pattern(data));
    write(&dir.path().join("adapter_model.safetensors"), &file);
    let wrapped = format!(".{name}.");
    let named = !name.is_empty() && !name.starts_with('.') && !name.ends_with('.');
    let legal = named && is_part(&a) && !WRAPPERS.iter().any(|part| wrapped.contains(part));
    match PeftAdapter::open(dir.path()) {
        Ok(adapter) => {
            assert!(legal, "{name:?} is accepted");
            let modules = adapter.plan().adapter().expect("it is an adapter");
            assert!(modules.modules().map(|(module, _)| module).eq([name]));
        }
        Err(error) => {
            let text = refusal(&error);
            assert!(!legal, "{text}");
        }
    }
}
