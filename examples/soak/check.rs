//! The oracle of reads: what the bytes of a lease must be, and to each other.
//!
//! What lives here: looking at every byte of a leased set, and what a lease of several sets must agree
//! on. What does not: sums (`books`), what a thread has seen before (`worker`).

use std::collections::{HashMap, HashSet};

use weighbridge::{Identity, Lease, LeasedSet, SetHandle, WeightKind};

use crate::pattern::{Body, checksum};
use crate::roles::{self, Role};

/// Bytes that the ledger is charged once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Charged {
    pub uid: u64,
    /// The address of the first of them: a flat weight that is registered again when it has just been
    /// unregistered, and is still held, is there twice.
    pub place: usize,
    pub bytes: u64,
}

const NOTHING: Charged = Charged {
    uid: 0,
    place: 0,
    bytes: 0,
};

/// What a leased set was seen to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    pub role: Role,
    pub handle: SetHandle,
    pub generation: u64,
    pub identity: Identity,
    pub base: Option<SetHandle>,
    pub stamp: u64,
    /// Its own bytes, and those it has a share of.
    pub own: Charged,
    pub shared: Option<Charged>,
}

/// What is known of the sets that come from files.
#[derive(Debug, Default)]
pub struct Files {
    /// By role: its charge, and the checksums of its tensors by name.
    pub known: HashMap<Role, (u64, HashMap<String, u64>)>,
}

/// The number in the revision that was declared.
fn declared(identity: &Identity) -> Result<u64, String> {
    match identity {
        Identity::Declared(text) | Identity::DeclaredPart(text, _) => {
            let number = text.rsplit(' ').next().and_then(|it| it.parse().ok());
            number.ok_or_else(|| format!("{identity} was never declared"))
        }
        _ => Err(format!("{identity} was not declared")),
    }
}

impl Files {
    fn look(&self, set: &LeasedSet<'_>, role: Role) -> Result<Charged, String> {
        let (bytes, sums) = self.known.get(&role).ok_or("no such file")?;
        let (mut count, mut place) = (0, usize::MAX);
        for weight in set.iter() {
            let weight = weight.map_err(|error| error.to_string())?;
            place = place.min(weight.bytes().as_ptr().addr());
            if sums.get(weight.name()) != Some(&checksum(weight.bytes())) {
                return Err(format!("{} is not what the file has", weight.name()));
            }
            count += 1;
        }
        if (count, set.bytes()) != (sums.len(), *bytes) {
            return Err(format!("{count} tensors, {} bytes", set.bytes()));
        }
        let uid = declared(set.identity())?;
        let bytes = *bytes;
        Ok(Charged { uid, place, bytes })
    }
}

/// All bytes of one set: of one body, of this set's role, charged as they must be.
pub fn look(set: &LeasedSet<'_>, files: &Files) -> Result<Facts, String> {
    let found = look_at(set, files);
    found.map_err(|wrong| format!("{}, generation {}: {wrong}", set.name(), set.generation()))
}

fn look_at(set: &LeasedSet<'_>, files: &Files) -> Result<Facts, String> {
    let role = roles::role_of(set.name()).ok_or("a name that nobody gave")?;
    let mut facts = Facts {
        role,
        handle: set.handle(),
        generation: set.generation().number(),
        identity: set.identity().clone(),
        base: set.base(),
        stamp: 0,
        own: NOTHING,
        shared: None,
    };
    if files.known.contains_key(&role) {
        facts.own = files.look(set, role)?;
        return Ok(facts);
    }
    let (own, shared, tensors) = bodies(set)?;
    if let Some(own) = own {
        if own.role != role {
            return Err(format!("it has {own:?}"));
        }
        facts.stamp = own.stamp;
        facts.own = charged(&own, &tensors);
    }
    if facts.own.bytes != set.bytes() {
        return Err(format!(
            "{} bytes, charged {}",
            facts.own.bytes,
            set.bytes()
        ));
    }
    facts.shared = shared.map(|(body, tensor)| charged(&body, &[tensor]));
    let target = shared.map(|(body, _)| body.role);
    if roles::USER.contains(&role) && target != Some(roles::owner_of(role)) {
        return Err(format!("its alias leads to {shared:?}"));
    }
    Ok(facts)
}

/// A tensor: its number in its body, where it is, and how long.
type Tensor = (u32, usize, usize);

/// What the ledger has for the body of these tensors, which are in its order.
fn charged(body: &Body, tensors: &[Tensor]) -> Charged {
    let places = tensors.iter().map(|&(_, place, _)| place);
    Charged {
        uid: body.uid,
        place: places.min().unwrap_or(0),
        bytes: roles::charge(tensors.iter().map(|&(_, _, len)| len)),
    }
}

type Bodies = (Option<Body>, Option<(Body, Tensor)>, Vec<Tensor>);

/// The one body that all own tensors are of, that of the alias, and the own tensors by number.
fn bodies(set: &LeasedSet<'_>) -> Result<Bodies, String> {
    let (mut own, mut shared, mut tensors) = (None, None, Vec::new());
    for weight in set.iter() {
        let weight = weight.map_err(|error| error.to_string())?;
        let alias = weight.kind() == WeightKind::TiedAlias;
        // The targets of aliases are tensors number 0 of sets of the population, or single weights.
        let number = match (alias, roles::FLAT_SPACE == set.name().namespace()) {
            (_, true) => 3,
            (true, false) => 10,
            (false, false) => roles::number_of(weight.name(), weight.kind()),
        };
        let wrong = |wrong| format!("{}: {wrong}", weight.name());
        let bytes = weight.bytes();
        let body = Body::of(bytes, number).map_err(wrong)?;
        let tensor = (number, bytes.as_ptr().addr(), bytes.len());
        if alias {
            shared = Some((body, tensor));
            continue;
        }
        tensors.push(tensor);
        match own {
            None => own = Some(body),
            Some(other) if other == body => {}
            Some(other) => return Err(format!("mixed: {other:?} and {body:?}")),
        }
    }
    tensors.sort_unstable();
    Ok((own, shared, tensors))
}

/// All sets of a lease, and what they must agree on.
pub fn look_together(lease: &Lease, files: &Files) -> Result<Vec<Facts>, String> {
    let facts: Result<Vec<Facts>, String> = lease.sets().map(|set| look(&set, files)).collect();
    let facts = facts?;
    agree(&facts)?;
    on_their_bases(&facts)?;
    let provenance = lease.provenance();
    for one in &provenance.sets {
        let Some(base) = &one.base else { continue };
        let leased = facts.iter().find(|facts| facts.handle == base.handle);
        if leased.is_some_and(|leased| leased.generation != base.generation.number()) {
            return Err(format!("{} is not on the base it is leased with", one.name));
        }
    }
    Ok(facts)
}

/// What sets of one instant must be to each other.
pub fn agree(facts: &[Facts]) -> Result<(), String> {
    for (at, one) in facts.iter().enumerate() {
        for other in &facts[at + 1..] {
            let pair = || format!("{one:?} and {other:?}");
            let (a, b) = (one.role.min(other.role), one.role.max(other.role));
            let member = |role: Role| (role.wrapping_sub(roles::GROUP.start)) / roles::MEMBERS;
            let together = [a, b].iter().all(|role| roles::GROUP.contains(role));
            if together && member(a) == member(b) && one.stamp != other.stamp {
                return Err(format!("a transaction in part: {}", pair()));
            }
            if roles::USER.contains(&b) && a == roles::owner_of(b) {
                let (owner, user) = if one.role == a {
                    (one, other)
                } else {
                    (other, one)
                };
                if user.shared != Some(owner.own) {
                    return Err(format!("an alias out of step: {}", pair()));
                }
            }
        }
    }
    Ok(())
}

/// What is leased with a base is on it.
fn on_their_bases(facts: &[Facts]) -> Result<(), String> {
    let bases = facts.iter().filter(|one| roles::BASE.contains(&one.role));
    for base in bases {
        let on_others = |one: &&Facts| {
            let adapter = roles::ADAPTER.contains(&one.role);
            adapter && !stands_on(one, base)
        };
        if let Some(adapter) = facts.iter().find(on_others) {
            return Err(format!("{adapter:?} was leased with {base:?}"));
        }
    }
    Ok(())
}

fn stands_on(adapter: &Facts, base: &Facts) -> bool {
    adapter.base == Some(base.handle) && roles::family(adapter.role) == roles::family(base.role)
}

/// Every adapter's base is there, or `away`, and of its family; of all sets that are current.
pub fn have_their_bases(current: &[Facts], away: &HashSet<SetHandle>) -> Result<(), String> {
    let bases: Vec<&Facts> = current
        .iter()
        .filter(|one| roles::BASE.contains(&one.role))
        .collect();
    let adapters = current
        .iter()
        .filter(|one| roles::ADAPTER.contains(&one.role));
    for adapter in adapters {
        let is_away = adapter.base.is_some_and(|base| away.contains(&base));
        if !is_away && !bases.iter().any(|base| stands_on(adapter, base)) {
            return Err(format!("{adapter:?} stands on nothing"));
        }
    }
    Ok(())
}
