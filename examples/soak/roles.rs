//! The population: which sets there are, what they are called, which tensors they have.
//!
//! What lives here: [`Role`]s, names, sources. What does not: what is done with them (`acts`).

use std::ops::Range;

use weighbridge::source::InMemory;
use weighbridge::{Dtype, Error, SetHandle, SetName, WeightHandle, WeightKind};

use crate::pattern::Body;
use crate::random::Random;

/// A place in the population.
pub type Role = usize;

/// Checkpoints that nothing stands on.
pub const PLAIN: Range<Role> = 0..10;
/// Checkpoints that change by transactions only, three at a time.
pub const GROUP: Range<Role> = 10..22;
pub const MEMBERS: usize = 3;
/// Checkpoints with adapters: two of each family.
pub const BASE: Range<Role> = 22..28;
pub const FAMILIES: usize = 3;
/// Adapters, each of one family.
pub const ADAPTER: Range<Role> = 28..40;
/// Checkpoints whose tensor is another set's, too.
pub const OWNER: Range<Role> = 40..43;
/// Sets with an alias.
pub const USER: Range<Role> = 43..49;
/// Sets of tenants, four of each.
pub const TENANT: Range<Role> = 49..61;
pub const PER_TENANT: usize = 4;
/// A checkpoint that is read from its file.
pub const READ: Role = 61;
/// The same, mapped.
pub const MAPPED: Role = 62;
/// Adapters of these from files, by directory.
pub const PEFT: Range<Role> = 63..66;
/// Weights that are registered one by one, and aliases of them.
pub const FLAT: Range<Role> = 66..78;
/// Sets whose names are used once.
pub const ONCE: Role = 78;
/// Sets of registries that are made and dropped during the run.
pub const NESTED: Role = 79;
/// A set whose layers are streamed.
pub const STREAMED: Role = 80;
pub const ROLES: usize = 81;

/// The namespace of the flat registry.
pub const FLAT_SPACE: &str = "flat";
/// Names of families' modules.
const MODULE: &str = "m";
const OUT: usize = 8;
const IN: usize = 16;
const RANK: usize = 2;
/// Bytes of the tensor that others have an alias of.
const SHARED: usize = 1000;

/// The group of a member.
pub fn group(of: usize) -> Range<Role> {
    let first = GROUP.start + of * MEMBERS;
    first..first + MEMBERS
}

pub fn family(role: Role) -> usize {
    if BASE.contains(&role) {
        (role - BASE.start) % FAMILIES
    } else {
        (role - ADAPTER.start) % FAMILIES
    }
}

/// The bases that an adapter may be on.
pub fn bases_of(family: usize) -> [Role; 2] {
    [BASE.start + family, BASE.start + family + FAMILIES]
}

pub fn owner_of(user: Role) -> Role {
    OWNER.start + (user - USER.start) % OWNER.len()
}

pub fn tenant_of(role: Role) -> usize {
    (role - TENANT.start) / PER_TENANT
}

pub fn tenant_name(tenant: usize) -> String {
    format!("tenant-{tenant}")
}

/// The full name of a role that has one.
pub fn name(role: Role) -> SetName {
    match role {
        _ if TENANT.contains(&role) => {
            let space = tenant_name(tenant_of(role));
            SetName::from((space.as_str(), format!("set-{role}").as_str()))
        }
        _ => SetName::from(format!("set-{role}")),
    }
}

/// What a set of this name is.
pub fn role_of(name: &SetName) -> Option<Role> {
    let (kind, number) = name.name().rsplit_once('-')?;
    match kind {
        "once" => Some(ONCE),
        "nested" => Some(NESTED),
        _ => number.parse().ok().filter(|role| *role < ROLES),
    }
}

/// The number of a tensor in its body.
pub fn number_of(name: &str, kind: WeightKind) -> u32 {
    match (
        kind,
        name.strip_prefix('t').and_then(|at| at.parse::<u32>().ok()),
    ) {
        (WeightKind::LoraA, _) => 1,
        (WeightKind::LoraB, _) => 2,
        (_, Some(at)) => 10 + at,
        _ => 3,
    }
}

/// Bytes of a body's tensors, by number: what its source has and what it must be charged.
fn lengths(role: Role, random: &mut Random) -> Vec<usize> {
    match role {
        _ if GROUP.contains(&role) => vec![256, 100],
        _ if BASE.contains(&role) => vec![500],
        _ if OWNER.contains(&role) => vec![SHARED],
        _ if USER.contains(&role) => vec![40],
        _ if TENANT.contains(&role) => vec![random.of_range(100..6000)],
        _ => {
            let count = random.of_range(1..4);
            // From 1 MiB on they are mapped, kept in the pool, and protected.
            let longest = match random.below(120) {
                0 => return vec![random.of_range(1_050_000..1_400_000)],
                1..4 => 500_000,
                _ => 9_000,
            };
            (0..count).map(|_| random.of_range(32..longest)).collect()
        }
    }
}

/// What a set in memory is charged for tensors of these lengths.
pub fn charge(lengths: impl Iterator<Item = usize>) -> u64 {
    let end = lengths.fold(0u64, |end, len| end.next_multiple_of(64) + len as u64);
    // From 1 MiB on they are mapped, in pages of any system.
    match end {
        0x10_0000.. => end.next_multiple_of(64 << 10),
        _ => end.next_multiple_of(64),
    }
}

/// A checkpoint of this body.
pub fn checkpoint(body: &Body, random: &mut Random) -> Result<InMemory, Error> {
    let mut source = InMemory::new();
    for (at, len) in lengths(body.role, random).into_iter().enumerate() {
        let bytes = body.bytes(10 + at as u32, len);
        source = source.tensor(format!("t{at}"), Dtype::U8, [len], bytes)?;
    }
    if BASE.contains(&body.role) {
        let weight = body.bytes(3, OUT * IN * 2);
        source = source.tensor(format!("{MODULE}.weight"), Dtype::BF16, [OUT, IN], weight)?;
    }
    Ok(if random.once_in(3) {
        source.declared(format!("step {}", body.uid))
    } else {
        source
    })
}

/// An adapter of this body, on `base`.
pub fn adapter(body: &Body, base: SetHandle) -> Result<InMemory, Error> {
    let (a, b) = (body.bytes(1, RANK * IN * 2), body.bytes(2, OUT * RANK * 2));
    let source = InMemory::new().lora(MODULE, Dtype::BF16, ([RANK, IN], a), ([OUT, RANK], b), 4.0);
    Ok(source?.on(base))
}

/// A set with a tensor of its own, and one that is `target`.
pub fn user(body: &Body, target: WeightHandle, random: &mut Random) -> Result<InMemory, Error> {
    checkpoint(body, random)?.alias("head", target)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_back_to_roles() {
        for role in 0..FLAT.start {
            assert_eq!(role_of(&name(role)), Some(role));
        }
        assert_eq!(role_of(&"once-7".into()), Some(ONCE));
        assert_eq!(role_of(&"somebody".into()), None);
    }

    #[test]
    fn charges_are_those_of_the_plans() {
        use weighbridge::source::Source;
        let mut random = Random::of(1, 1);
        for uid in 0..200 {
            for role in [PLAIN.start, BASE.start, OWNER.start, GROUP.start] {
                let body = Body {
                    uid,
                    role,
                    stamp: 0,
                };
                let plan = checkpoint(&body, &mut random).unwrap().plan().clone();
                let lengths = plan.tensors().iter().map(|tensor| tensor.range().len());
                assert_eq!(charge(lengths), plan.charged_bytes());
            }
        }
    }
}
