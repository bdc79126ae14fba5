//! What sets are made of, and what that is as a digest.
//!
//! What lives here: the few kinds of contents that operations choose from, as a source for the registry
//! and as plain bytes for the model, and the content identity by the format that is written down at
//! `Identity::Content`, computed without the library. What does not: what becomes of contents (`model`).

use std::sync::Arc;

use weighbridge::source::{InMemory, Reload, Source};
use weighbridge::{Dtype, Error, Plan, SetHandle, WeightHandle};

use super::ops::Who;

/// What an operation offers. All bytes of a set are its last number, so a mixture can be seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Offer {
    /// `w`, of so many bytes.
    Plain(usize, u8),
    /// `w` of 64 bytes, and a linear module `m` of so many outputs.
    Base(usize, u8),
    /// `own` of eight bytes, and `head`, which is a tensor of another set.
    Tied(Who, u8),
    /// An adapter that replaces `w` by one of so many bytes.
    Patch(Who, usize, u8),
    /// An adapter with one LoRA module, on `m` with so many outputs.
    Lora(Who, usize, u8),
    /// Tensors that change nothing of the base that they are bound to.
    Idle(Who),
    /// `w`, of so many bytes, and the source breaks when it is read.
    Broken(usize),
}

pub type Tensor = (String, Vec<usize>, Vec<u8>);

/// A name for a tensor of another set: that set, the tensor there, and the shape that it had.
#[derive(Debug, Clone, PartialEq)]
pub struct Alias {
    pub name: String,
    /// The set that was asked for it. It may be an alias there, too.
    pub asked: SetHandle,
    pub set: SetHandle,
    pub tensor: String,
    pub shape: Vec<usize>,
}

/// What a generation is made of, by itself.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Content {
    /// By name.
    pub own: Vec<Tensor>,
    pub aliases: Vec<Alias>,
    pub base: Option<SetHandle>,
    /// Module, rank and factor.
    pub lora: Option<(&'static str, u32, f64)>,
    pub broken: bool,
    pub idle: bool,
    /// Its source can be read again.
    pub again: bool,
}

/// What an offer's handles are.
pub struct Named {
    pub base: Option<SetHandle>,
    pub alias: Option<(WeightHandle, Alias)>,
}

/// What the bytes of a tensor mean. A linear module of U8 may be quantised, so that its features are not
/// known and nothing is checked.
fn dtype(name: &str) -> (Dtype, &'static str, usize) {
    match name == "m.weight" || name.contains("lora") {
        true => (Dtype::F16, "F16", 2),
        false => (Dtype::U8, "U8", 1),
    }
}

pub const PREFIX: &str = "base_model.model.";

impl Content {
    pub fn of(offer: Offer, named: &Named) -> Content {
        let tensor = |name: &str, shape: &[usize], fill: u8| -> Tensor {
            let len = shape.iter().product::<usize>() * dtype(name).2;
            (name.to_owned(), shape.to_vec(), vec![fill; len])
        };
        let mut content = Content {
            base: named.base,
            aliases: named.alias.iter().map(|(_, alias)| alias.clone()).collect(),
            ..Content::default()
        };
        content.own = match offer {
            Offer::Plain(len, fill) => vec![tensor("w", &[len], fill)],
            Offer::Base(outs, fill) => {
                vec![
                    tensor("m.weight", &[outs, 2], fill),
                    tensor("w", &[64], fill),
                ]
            }
            Offer::Tied(_, fill) => vec![tensor("own", &[8], fill)],
            Offer::Patch(_, len, fill) => vec![tensor(&format!("{PREFIX}w"), &[len], fill)],
            Offer::Lora(_, outs, fill) => vec![
                tensor(&format!("{PREFIX}m.lora_A.weight"), &[1, 2], fill),
                tensor(&format!("{PREFIX}m.lora_B.weight"), &[outs, 1], fill),
            ],
            Offer::Idle(_) => vec![tensor("w", &[8], 1)],
            Offer::Broken(len) => vec![tensor("w", &[len], 0)],
        };
        content.lora = matches!(offer, Offer::Lora(..)).then_some(("m", 1, 3.0));
        content.broken = matches!(offer, Offer::Broken(_));
        content.idle = matches!(offer, Offer::Idle(_));
        content.again = match offer {
            Offer::Plain(_, fill)
            | Offer::Base(_, fill)
            | Offer::Patch(_, _, fill)
            | Offer::Lora(_, _, fill) => !fill.is_multiple_of(4),
            // Of tensors that are another set's, nothing could be.
            Offer::Tied(..) | Offer::Idle(_) | Offer::Broken(_) => false,
        };
        content
    }

    /// What an arena for it takes: whole lines of 64 bytes for each tensor.
    pub fn bytes(&self) -> u64 {
        let lines = self
            .own
            .iter()
            .map(|(_, _, bytes)| bytes.len().div_ceil(64));
        64 * lines.sum::<usize>() as u64
    }

    pub fn is_adapter(&self) -> bool {
        self.base.is_some()
    }

    /// The sets that its aliases are in, each once.
    pub fn targets(&self) -> Vec<SetHandle> {
        let mut sets: Vec<_> = self.aliases.iter().map(|alias| alias.set).collect();
        sets.sort_unstable();
        sets.dedup();
        sets
    }

    pub fn find(&self, tensor: &str) -> Option<&Tensor> {
        self.own.iter().find(|own| own.0 == tensor)
    }
}

/// The same as a source.
pub fn source(offer: Offer, named: &Named) -> Either {
    let content = Content::of(offer, named);
    let mut set = InMemory::new();
    let add = |set: InMemory, (name, shape, bytes): &Tensor| {
        let (name, shape, bytes) = (name.as_str(), shape.as_slice(), bytes.clone());
        match name.strip_prefix(PREFIX) {
            Some(replaced) => set.replacement(replaced, dtype(name).0, shape, bytes),
            None => set.tensor(name, dtype(name).0, shape, bytes),
        }
        .unwrap()
    };
    if let [a, b] = &content.own[..]
        && let Some((module, _, factor)) = content.lora
    {
        let two = |tensor: &Tensor| ([tensor.1[0], tensor.1[1]], tensor.2.clone());
        set = set
            .lora(module, dtype(&a.0).0, two(a), two(b), factor)
            .unwrap();
    } else {
        set = content.own.iter().fold(set, add);
    }
    if let Some((handle, alias)) = &named.alias {
        set = set.alias(alias.name.as_str(), *handle).unwrap();
    }
    if let Some(base) = content.base {
        set = set.on(base);
    }
    let again = content.again || !content.aliases.is_empty();
    Either(Arc::new(set), content.broken, again)
}

/// A source that may break when it is read, and may be read again.
pub struct Either(Arc<InMemory>, bool, bool);

impl Source for Either {
    fn plan(&self) -> &Plan {
        self.0.plan()
    }

    fn read_into(&self, arena: &mut [u8]) -> Result<(), Error> {
        if self.1 {
            let (tensor, reason) = ("w".to_owned(), "broken on purpose".to_owned());
            return Err(Error::InvalidTensor { tensor, reason });
        }
        self.0.read_into(arena)
    }

    fn base(&self) -> Option<SetHandle> {
        self.0.base()
    }

    fn reload(&self) -> Option<Arc<dyn Reload>> {
        let again = || Arc::new(Again(Arc::clone(&self.0))) as Arc<dyn Reload>;
        self.2.then(again)
    }
}

struct Again(Arc<InMemory>);

impl Reload for Again {
    fn reopen(&self, read: &mut dyn FnMut(&dyn Source) -> Result<(), Error>) -> Result<(), Error> {
        read(&*self.0)
    }
}

/// The content identity, as it prints, of tensors of bytes and an adapter's module.
pub fn identity(tensors: &[Tensor], lora: Option<(&str, u32, f64)>, adapter: bool) -> String {
    let mut tensors: Vec<&Tensor> = tensors.iter().collect();
    tensors.sort();
    let mut text = b"weighbridge content v1".to_vec();
    let number = |text: &mut Vec<u8>, number: usize| text.extend((number as u64).to_le_bytes());
    let string = |text: &mut Vec<u8>, string: &str| {
        number(text, string.len());
        text.extend(string.as_bytes());
    };
    number(&mut text, tensors.len());
    for (name, shape, bytes) in tensors {
        string(&mut text, name);
        string(&mut text, dtype(name).1);
        number(&mut text, shape.len());
        shape.iter().for_each(|&side| number(&mut text, side));
        text.extend(blake3::hash(bytes).as_bytes());
    }
    if adapter {
        number(&mut text, lora.iter().len());
        if let Some((module, rank, factor)) = lora {
            string(&mut text, module);
            text.extend(rank.to_le_bytes());
            text.extend(factor.to_le_bytes());
        }
    }
    format!("blake3:{}", blake3::hash(&text).to_hex())
}
