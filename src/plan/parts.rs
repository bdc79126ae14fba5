//! Parts: groups of a set's tensors that are in memory together.
//!
//! What lives here: the rules that say which tensor is of which part, and what the parts of a plan are. What does
//! not: when they are in memory (`core::window`), who uses them (`registry::stream`).

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use super::Plan;
use crate::arena::ALIGNMENT;
use crate::error::Error;
use crate::layout::{PART_BYTES, PARTS};

type Rule = dyn Fn(&str) -> Option<String> + Send + Sync;
type Hot = dyn Fn(&str) -> bool + Send + Sync;

/// Which tensors of a checkpoint form a part, by their names: a layer, an expert.
///
/// What is of no part stays in memory with its set: embeddings, norms, the head.
///
/// # Examples
/// ```
/// use weighbridge::Parts;
///
/// let layers = Parts::layers();
/// let part = |name| layers.of(name);
/// assert_eq!(part("model.layers.11.mlp.up_proj.weight").as_deref(), Some("model.layers.11"));
/// assert_eq!(part("transformer.h.3.ln_1.bias").as_deref(), Some("transformer.h.3"));
/// assert_eq!(part("model.embed_tokens.weight"), None);
/// ```
#[derive(Clone)]
pub struct Parts {
    rule: Arc<Rule>,
    /// Of the parts, those that stay in memory.
    kept: Option<Arc<Hot>>,
    rest: bool,
}

impl Parts {
    /// One part for each layer: whatever has the same name up to the first number in it, as in
    /// `model.layers.11`, `transformer.h.11`, `encoder.block.11`, `backbone.layers.11`, which is how checkpoints of
    /// transformers and of state-space models name their layers. Experts go with their layer.
    pub fn layers() -> Self {
        Self::by(|name| through_number(name, |_| true))
    }

    /// One part for each expert of a mixture: whatever has the same name up to the number after `experts`, as in
    /// `model.layers.3.mlp.experts.17` or `model.layers.3.block_sparse_moe.experts.5`. Everything else stays in memory.
    pub fn experts() -> Self {
        Self::by(|name| through_number(name, |before| before == "experts"))
    }

    /// A rule of your own: the part of the tensor of this name; `None` for what stays in memory.
    pub fn by(rule: impl Fn(&str) -> Option<String> + Send + Sync + 'static) -> Self {
        Parts {
            rule: Arc::new(rule),
            kept: None,
            rest: false,
        }
    }

    /// These of the rule's parts, by their names, stay in memory all the time (`rest` is none of them): experts that most tokens need, layers that are used twice
    /// as often.
    ///
    /// # Examples
    /// ```
    /// use weighbridge::Parts;
    ///
    /// // Which experts are hot is known from a profile, and the first one is shared by all tokens.
    /// let experts = Parts::experts().keep(|part| part.ends_with(".experts.0"));
    /// assert_eq!(experts.of("model.layers.3.mlp.experts.0.up_proj.weight"), None);
    /// assert!(experts.of("model.layers.3.mlp.experts.17.up_proj.weight").is_some());
    /// ```
    pub fn keep(self, hot: impl Fn(&str) -> bool + Send + Sync + 'static) -> Self {
        let before = self.kept;
        let kept =
            move |part: &str| hot(part) || before.as_ref().is_some_and(|before| before(part));
        Parts {
            kept: Some(Arc::new(kept)),
            ..self
        }
    }

    /// What would stay in memory is one more part, the last one, called `rest`. What is [kept](Self::keep) is not of it.
    pub fn and_the_rest(mut self) -> Self {
        self.rest = true;
        self
    }

    /// The part of a tensor.
    pub fn of(&self, name: &str) -> Option<String> {
        match (self.rule)(name) {
            Some(part) if self.kept.as_ref().is_some_and(|hot| hot(&part)) => None,
            Some(part) => Some(part),
            None => self.rest.then(|| REST.to_owned()),
        }
    }
}

const REST: &str = "rest";

impl fmt::Debug for Parts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("Parts");
        debug.field("rest", &self.rest).finish_non_exhaustive()
    }
}

/// `name` up to its first component that is a number and follows one that will do.
fn through_number(name: &str, will_do: impl Fn(&str) -> bool) -> Option<String> {
    let mut before = None;
    let mut end = 0;
    for component in name.split('.') {
        end += component.len();
        let number = !component.is_empty() && component.bytes().all(|byte| byte.is_ascii_digit());
        if number && before.is_some_and(&will_do) {
            // What is called like that itself has nothing in it.
            return (end < name.len()).then(|| name[..end].to_owned());
        }
        before = Some(component);
        end += 1;
    }
    None
}

/// Names in the order in which people count: `layers.2` before `layers.10`.
fn by_number(a: &str, b: &str) -> Ordering {
    let number = |text: &str| text.parse::<u64>().ok();
    let (mut left, mut right) = (a.split('.'), b.split('.'));
    loop {
        let order = match (left.next(), right.next()) {
            (None, None) => return a.cmp(b),
            (None, Some(_)) => Ordering::Less,
            (Some(_), None) => Ordering::Greater,
            (Some(a), Some(b)) => match (number(a), number(b)) {
                (Some(a), Some(b)) => a.cmp(&b),
                _ => a.cmp(b),
            },
        };
        if order != Ordering::Equal {
            return order;
        }
    }
}

/// One part of a plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedPart {
    pub(crate) name: Arc<str>,
    pub(crate) bytes: u64,
    /// Indices of the tensors that are in it and have bytes of their own.
    pub(crate) tensors: Box<[usize]>,
}

impl PlannedPart {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The memory that it takes: its tensors, each at a multiple of 64, ties once.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

/// The parts of a plan, and the window in which they are in memory in turn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedParts {
    pub(crate) all: Box<[PlannedPart]>,
    /// What stays in memory: the front of the arena.
    pub(crate) resident: u64,
    pub(crate) window: u64,
}

/// How much of a set that is streamed is in memory at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WindowSize {
    /// So many bytes.
    Bytes(u64),
    /// So many parts, if they are as large as the largest one.
    Parts(u32),
    /// As many bytes as this leaves when what stays in memory is subtracted.
    Within(u64),
}

impl PlannedParts {
    /// The parts, in the order in which people count.
    pub fn all(&self) -> &[PlannedPart] {
        &self.all
    }

    /// Bytes of what stays in memory as long as the set does.
    pub fn resident_bytes(&self) -> u64 {
        self.resident
    }

    /// Bytes of the window.
    pub fn window_bytes(&self) -> u64 {
        self.window
    }

    /// Bytes of all parts together.
    pub fn part_bytes(&self) -> u64 {
        self.all.iter().map(|part| part.bytes).sum()
    }
}

impl Plan {
    /// The same tensors in parts: what is of no part at the front of the arena, each other tensor at its place in its
    /// part, and behind what stays a window for the parts.
    ///
    /// # Errors
    /// [`Error::InvalidParts`]: there is no part, a part does not fit into the window, or there is more than can be
    /// told apart.
    pub(crate) fn parted(mut self, parts: &Parts, window: WindowSize) -> Result<Self, Error> {
        let refuse = |origin: &str, reason: String| Error::InvalidParts {
            origin: origin.to_owned(),
            reason,
        };
        if self.is_placed() {
            let reason = "its memory is there already".to_owned();
            return Err(refuse(&self.origin, reason));
        }
        let mut names: BTreeMap<String, Vec<usize>> = BTreeMap::new();
        let mut resident = 0u64;
        // No sum overflows: all of it was one arena.
        let aligned = |len: u64| len.next_multiple_of(ALIGNMENT as u64);
        for index in 0..self.tensors.len() {
            let tensor = &mut self.tensors[index];
            tensor.part = None;
            if tensor.tie.is_some() {
                continue;
            }
            match parts.of(&tensor.name) {
                Some(part) => names.entry(part).or_default().push(index),
                None => {
                    tensor.offset = resident;
                    resident += aligned(tensor.byte_len);
                }
            }
        }
        let mut names: Vec<(String, Vec<usize>)> = names.into_iter().collect();
        let last = |name: &str| parts.rest && name == REST;
        names.sort_by(|(a, _), (b, _)| last(a).cmp(&last(b)).then_with(|| by_number(a, b)));
        if names.is_empty() {
            let reason = "no tensor is of any part".to_owned();
            return Err(refuse(&self.origin, reason));
        }
        if names.len() > PARTS {
            let reason = format!("{} parts; at most {PARTS} are possible", names.len());
            return Err(refuse(&self.origin, reason));
        }
        let mut all = Vec::with_capacity(names.len());
        for (number, (name, tensors)) in (0..).zip(names) {
            let mut end = 0u64;
            for &index in &tensors {
                let tensor = &mut self.tensors[index];
                (tensor.part, tensor.offset) = (Some(number), end);
                end += aligned(tensor.byte_len);
            }
            if end >= PART_BYTES {
                let reason =
                    format!("{name:?} has {end} bytes; less than {PART_BYTES} are possible");
                return Err(refuse(&self.origin, reason));
            }
            all.push(PlannedPart {
                name: name.into(),
                bytes: end,
                tensors: tensors.into(),
            });
        }
        for index in 0..self.tensors.len() {
            if let Some(target) = self.tensors[index].tie {
                let (part, offset) = (self.tensors[target].part, self.tensors[target].offset);
                (self.tensors[index].part, self.tensors[index].offset) = (part, offset);
            }
        }
        let largest = all.iter().max_by_key(|part| part.bytes);
        let most = largest.map_or(0, |part| part.bytes);
        let sum: u64 = all.iter().map(|part| part.bytes).sum();
        let window = match window {
            WindowSize::Bytes(bytes) => bytes,
            WindowSize::Parts(parts) => most.saturating_mul(u64::from(parts)),
            WindowSize::Within(bytes) => bytes.saturating_sub(resident),
        };
        // More would never be used.
        let window = window.min(sum) / ALIGNMENT as u64 * ALIGNMENT as u64;
        if let Some(part) = largest.filter(|part| part.bytes > window) {
            let reason = format!(
                "{:?} has {} bytes, and the window {window}; what stays in memory has {resident}",
                part.name, part.bytes
            );
            return Err(refuse(&self.origin, reason));
        }
        self.arena_bytes = resident + window;
        self.parts = Some(Arc::new(PlannedParts {
            all: all.into(),
            resident,
            window,
        }));
        Ok(self)
    }

    /// Its parts, if it is one of a set that is streamed.
    pub fn parts(&self) -> Option<&PlannedParts> {
        self.parts.as_deref()
    }
}

#[cfg(all(test, not(weighbridge_loom)))]
mod tests {
    use super::*;
    use crate::Dtype;

    fn plan(names: &[(&str, usize)]) -> Plan {
        let tensors = names
            .iter()
            .map(|(name, len)| (*name, Dtype::U8, vec![*len]));
        Plan::of("a checkpoint", tensors).unwrap()
    }

    #[test]
    fn what_is_kept_is_of_no_part() {
        let kept = Parts::experts()
            .keep(|part| part.ends_with(".0"))
            .keep(|part| part.ends_with("experts.7"));
        for parts in [kept.clone(), kept.and_the_rest()] {
            for (expert, stays) in [(0, true), (1, false), (7, true), (17, false)] {
                let part = format!("model.layers.2.mlp.experts.{expert}");
                let of = parts.of(&format!("{part}.up_proj.weight"));
                assert_eq!(of, (!stays).then_some(part));
            }
        }
        // What is no part by the rule is asked about by no name.
        let rest = Parts::experts().and_the_rest().keep(|_| true);
        assert_eq!(rest.of("model.norm.weight").as_deref(), Some("rest"));
        assert_eq!(rest.of("model.layers.2.mlp.experts.3.w1.weight"), None);
    }

    #[test]
    fn layers_of_the_common_families() {
        let layers = Parts::layers();
        for (name, part) in [
            (
                "model.layers.0.self_attn.q_proj.weight",
                Some("model.layers.0"),
            ),
            (
                "model.layers.12.mlp.experts.7.w1.weight",
                Some("model.layers.12"),
            ),
            (
                "transformer.h.5.attn.c_attn.weight",
                Some("transformer.h.5"),
            ),
            ("h.5.ln_1.weight", Some("h.5")),
            (
                "gpt_neox.layers.3.attention.dense.bias",
                Some("gpt_neox.layers.3"),
            ),
            (
                "model.decoder.layers.9.fc1.weight",
                Some("model.decoder.layers.9"),
            ),
            (
                "encoder.block.2.layer.0.SelfAttention.q.weight",
                Some("encoder.block.2"),
            ),
            (
                "bert.encoder.layer.11.output.dense.weight",
                Some("bert.encoder.layer.11"),
            ),
            (
                "backbone.layers.40.mixer.in_proj.weight",
                Some("backbone.layers.40"),
            ),
            (
                "transformer_blocks.1.attn.to_q.weight",
                Some("transformer_blocks.1"),
            ),
            ("model.embed_tokens.weight", None),
            ("lm_head.weight", None),
            ("model.norm.weight", None),
            ("wte.weight", None),
            ("0.weight", None),
            ("layers.3", None),
        ] {
            assert_eq!(layers.of(name).as_deref(), part, "{name}");
        }
        let experts = Parts::experts();
        for (name, part) in [
            (
                "model.layers.3.mlp.experts.17.up_proj.weight",
                Some("model.layers.3.mlp.experts.17"),
            ),
            (
                "model.layers.0.block_sparse_moe.experts.5.w2.weight",
                Some("model.layers.0.block_sparse_moe.experts.5"),
            ),
            ("model.layers.3.mlp.gate.weight", None),
            ("model.layers.3.mlp.shared_experts.up_proj.weight", None),
        ] {
            assert_eq!(experts.of(name).as_deref(), part, "{name}");
        }
    }

    #[test]
    fn parts_are_counted_as_people_count() {
        let names: Vec<String> = (0..12).map(|at| format!("layers.{at}.w")).collect();
        let mut tensors: Vec<(&str, usize)> = names.iter().map(|name| (&**name, 10)).collect();
        tensors.extend([("embed", 100), ("norm", 3)]);
        let parted = plan(&tensors).parted(&Parts::layers(), WindowSize::Parts(3));
        let parted = parted.unwrap();
        let parts = parted.parts().unwrap();
        let found: Vec<&str> = parts.all().iter().map(PlannedPart::name).collect();
        let counted: Vec<String> = (0..12).map(|at| format!("layers.{at}")).collect();
        assert_eq!(found, counted);
        assert_eq!(
            (parts.resident_bytes(), parts.window_bytes()),
            (128 + 64, 3 * 64)
        );
        assert_eq!(parted.arena_bytes(), 128 + 64 + 3 * 64);
        assert_eq!(parted.charged_bytes(), parted.arena_bytes());

        let all = plan(&tensors).parted(&Parts::layers().and_the_rest(), WindowSize::Parts(99));
        let all = all.unwrap();
        let parts = all.parts().unwrap();
        assert_eq!(parts.all().last().unwrap().name(), "rest");
        assert_eq!(
            (parts.resident_bytes(), parts.window_bytes()),
            (0, parts.part_bytes())
        );
    }

    #[test]
    fn a_tie_is_in_the_part_of_its_target() {
        let tensor = |name, len| {
            let shape = vec![len as usize];
            super::super::PlannedTensor::new(name, Dtype::U8.into(), shape, len)
        };
        let tensors = vec![tensor("embed", 8), tensor("layers.0.w", 8)];
        let ties = [("head".to_owned(), "layers.0.w".to_owned())];
        let plan = Plan::new("a checkpoint", tensors, &ties).unwrap();
        let plan = plan.parted(&Parts::layers(), WindowSize::Parts(1)).unwrap();
        let of = |name| {
            let tensor = &plan.tensors()[plan.position(name).unwrap()];
            (tensor.part, tensor.offset)
        };
        assert_eq!(
            (of("head"), of("layers.0.w"), of("embed")),
            ((Some(0), 0), (Some(0), 0), (None, 0))
        );
        assert_eq!(&*plan.parts().unwrap().all[0].tensors, [2]);
    }

    #[test]
    fn what_cannot_be_streamed_says_why() {
        let checkpoint = || plan(&[("embed", 1000), ("layers.0.w", 100), ("layers.1.w", 300)]);
        let refused = |window| {
            let parted = checkpoint().parted(&Parts::layers(), window);
            parted.unwrap_err().to_string()
        };
        for window in [
            WindowSize::Bytes(319),
            WindowSize::Within(1343),
            WindowSize::Parts(0),
        ] {
            let says = refused(window);
            assert!(says.contains("\"layers.1\" has 320 bytes"), "{says}");
        }
        assert!(
            checkpoint()
                .parted(&Parts::layers(), WindowSize::Within(1344))
                .is_ok()
        );
        let none = plan(&[("embed", 1)]).parted(&Parts::layers(), WindowSize::Parts(1));
        assert!(matches!(none, Err(Error::InvalidParts { .. })));
    }
}
