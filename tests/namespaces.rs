//! Namespaces: no look-up across, limits of their own, and accounts for memory that others own.

mod support;

use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};

use support::{SOON, adapter, bytes, registry, tiny};
use weighbridge::source::{InMemory, Source};
use weighbridge::{
    Account, Dtype, Error, Namespace, NamespaceLimits, Plan, PublishError, SetHandle, SetName,
    WeightRegistry,
};

/// What a set of one small tensor is charged.
const SMALL: u64 = 64;

fn none() -> NamespaceLimits {
    NamespaceLimits::none()
}

fn total(registry: &WeightRegistry, namespace: &str) -> u64 {
    registry.account(&Account::namespace(namespace)).total()
}

/// Refused because it is another namespace's, and the text does not say whose.
#[track_caller]
fn wrong(error: &Error, set: SetHandle) {
    let Error::WrongNamespace { handle, namespace } = error else {
        panic!("{error:?}")
    };
    assert_eq!((*handle, &**namespace), (set, "a"));
    assert!(error.is_misuse());
    assert!(!error.to_string().contains("secret"), "{error}");
}

#[track_caller]
fn wrong_publish<T: std::fmt::Debug>(answer: Result<T, PublishError>, set: SetHandle) {
    wrong(answer.unwrap_err().error(), set);
}

fn alias(registry: &WeightRegistry, of: SetHandle) -> InMemory {
    let w = registry.weight_handle(of, "w").unwrap();
    InMemory::new().alias("x", w).unwrap()
}

fn lora() -> InMemory {
    let (a, b) = (([1, 2], [0u8; 2]), ([2, 1], [0u8; 2]));
    InMemory::new().lora("m", Dtype::U8, a, b, 1.0).unwrap()
}

/// A checkpoint that `lora` fits.
fn base() -> InMemory {
    let w = InMemory::new().tensor("w", Dtype::U8, [1], [1]).unwrap();
    w.tensor("m.weight", Dtype::U8, [2, 2], [1; 4]).unwrap()
}

#[test]
fn no_operation_reaches_a_set_of_another_namespace() {
    let registry = registry();
    registry.set_namespace_limits("secret", none()).unwrap();
    let (a, b) = (
        registry.namespace("a").unwrap(),
        registry.namespace("secret").unwrap(),
    );
    let own = a.publish("x", base()).unwrap();
    let own_adapter = a.publish("l", lora().on(own)).unwrap();
    let other = b.publish("x", base()).unwrap();
    let other_adapter = b.publish("l", lora().on(other)).unwrap();
    let staged = || a.stage(bytes(1, 9)).unwrap();
    let before = registry.catalog();
    let (count, of_b) = (before.number(), total(&registry, "secret"));

    // Reading.
    assert_eq!(a.lookup("x"), Some(own));
    wrong(&a.acquire(other).unwrap_err(), other);
    wrong(&a.acquire([own, other]).unwrap_err(), other);
    wrong(&a.acquire_as("me", other).unwrap_err(), other);
    wrong(
        &a.acquire([own, own_adapter, other_adapter]).unwrap_err(),
        other_adapter,
    );
    wrong(&a.weight_handle(other, "w").unwrap_err(), other);
    wrong(
        &a.weight_handle(other, "no such tensor").unwrap_err(),
        other,
    );
    wrong(&a.kept(other).unwrap_err(), other);
    let catalog = a.catalog();
    let listed: Vec<_> = catalog.entries().iter().map(|entry| entry.handle).collect();
    assert_eq!(listed, [own_adapter, own]);
    assert!(catalog.get(("secret", "x")).is_none() && catalog.get(("a", "x")).is_some());

    // Changing.
    let some = a.acquire(own).unwrap().number();
    wrong_publish(a.replace(other, bytes(1, 9)), other);
    wrong_publish(a.replace_if(other, some, bytes(1, 9)), other);
    let refused = a.replace_staged(other, staged()).unwrap_err();
    wrong(refused.error(), other);
    assert!(refused.into_staged().is_some());
    let refused = a.replace_staged_if(other, some, staged()).unwrap_err();
    wrong(refused.error(), other);
    assert!(refused.into_staged().is_some());
    wrong_publish(a.replace_drained(other, bytes(1, 9), SOON), other);
    wrong(&a.retire(other).unwrap_err(), other);
    wrong(&a.retire_if(other, some).unwrap_err(), other);
    wrong(&a.rollback(other).unwrap_err(), other);
    wrong(&a.rollback_to(other, some).unwrap_err(), other);
    wrong(&a.keep_previous(other, 1).unwrap_err(), other);
    wrong(&a.rebind(other_adapter, own).unwrap_err(), other_adapter);
    wrong(&a.rebind(own_adapter, other).unwrap_err(), other);

    // Standing on it. What does not fit it is not told that, but that it has no business there.
    let misfit = InMemory::new();
    let misfit = misfit.lora("q", Dtype::U8, ([1, 7], [0; 7]), ([7, 1], [0; 7]), 1.0);
    wrong(&a.stage(misfit.unwrap().on(other)).unwrap_err(), other);
    wrong(&a.stage(lora().on(other)).unwrap_err(), other);
    wrong(&a.stage(alias(&registry, other)).unwrap_err(), other);
    wrong_publish(a.publish("y", lora().on(other)), other);
    wrong_publish(a.publish("y", alias(&registry, other)), other);
    wrong_publish(a.replace(own_adapter, lora().on(other)), other);
    wrong_publish(
        a.replace_drained(own_adapter, lora().on(other), SOON),
        other,
    );
    wrong_publish(a.replace_drained(own, alias(&registry, other), SOON), other);
    let plan = Source::plan(&lora()).clone();
    wrong(&a.fill(plan, Some(other)).unwrap_err(), other);
    let w = registry.weight_handle(other, "w").unwrap();
    let plan = Plan::of("filled", [("v", Dtype::U8, vec![1])]).unwrap();
    wrong(
        &a.fill(plan.with_alias("x", w).unwrap(), None).unwrap_err(),
        other,
    );
    // Also if the operator staged it.
    for source in [lora().on(other), alias(&registry, other)] {
        let staged = registry.stage(source).unwrap();
        let refused = a.publish_staged("y", staged).unwrap_err();
        wrong(refused.error(), other);
        let staged = refused.into_staged().unwrap();
        let set = if staged.plan().adapter().is_some() {
            own_adapter
        } else {
            own
        };
        let refused = a.replace_staged(set, staged).unwrap_err();
        wrong(refused.error(), other);
        let staged = refused.into_staged().unwrap();
        let mut all = a.transaction();
        wrong_publish(all.publish("y", staged), other);
    }

    // The same in a transaction, which goes on without what was refused.
    let mut all = a.transaction();
    wrong(&all.stage(lora().on(other)).unwrap_err(), other);
    wrong(&all.stage(alias(&registry, other)).unwrap_err(), other);
    wrong_publish(all.replace(other, staged()), other);
    wrong_publish(all.replace_if(other, some, staged()), other);
    wrong(&all.retire(other).unwrap_err(), other);
    wrong(&all.retire_if(other, some).unwrap_err(), other);
    wrong(&all.rollback(other).unwrap_err(), other);
    wrong(&all.rebind(other_adapter, own).unwrap_err(), other_adapter);
    wrong(&all.rebind(own_adapter, other).unwrap_err(), other);

    // Nothing of all this was a commit, or left a byte.
    assert_eq!(registry.catalog().number(), count);
    assert_eq!(total(&registry, "secret"), of_b);
    assert_eq!(registry.ledger().reserved, 0);
    assert_eq!(all.commit().unwrap().published, []);
}

#[test]
fn an_alias_of_an_alias_does_not_lead_across() {
    let registry = registry();
    let (a, secret) = (
        registry.namespace("a").unwrap(),
        registry.namespace("secret").unwrap(),
    );
    let other = secret.publish("x", bytes(1, 1)).unwrap();
    // The operator shares a set that has another tenant's tensor.
    let shared = registry.publish("shared", alias(&registry, other)).unwrap();
    assert!(a.acquire(shared).is_ok());
    let x = a.weight_handle(shared, "x").unwrap();
    let source = InMemory::new().alias("y", x).unwrap();
    wrong(&a.stage(source.clone()).unwrap_err(), other);
    wrong(&a.transaction().stage(source.clone()).unwrap_err(), other);
    let staged = registry.stage(source).unwrap();
    wrong_publish(a.publish_staged("y", staged), other);

    // Nor by the name that another tenant has for what all may read.
    let public = registry.publish("public", bytes(1, 1)).unwrap();
    let theirs = secret.publish("theirs", alias(&registry, public)).unwrap();
    let x = registry.weight_handle(theirs, "x").unwrap();
    let source = InMemory::new().alias("z", x).unwrap();
    wrong(&a.stage(source.clone()).unwrap_err(), theirs);
    wrong_publish(a.publish("z", source.clone()), theirs);
    // What the operator staged of it stands on the public set, and on nothing of theirs.
    let staged = registry.stage(source).unwrap();
    a.publish_staged("z", staged).unwrap();
    secret.retire(theirs).unwrap();
}

#[test]
fn the_default_namespace_is_shared_to_read_and_to_stand_on() {
    let registry = registry();
    let base_set = registry.publish("base", tiny()).unwrap();
    let a = registry.namespace("a").unwrap();
    assert_eq!(
        a.lookup("base"),
        None,
        "a tenant is given the handle, it finds none"
    );
    let pirate = a.publish("pirate", adapter("pirate-v1", base_set)).unwrap();
    let lease = a.acquire([base_set, pirate]).unwrap();
    assert_eq!(lease.sets().len(), 2);
    let head = a.weight_handle(base_set, "lm_head.weight").unwrap();
    let aliased = a
        .publish("head", InMemory::new().alias("head", head).unwrap())
        .unwrap();
    assert!(a.acquire(aliased).is_ok());
    // Each pays for its own.
    let sizes = |set| registry.acquire(set).unwrap().set(set).unwrap().bytes();
    assert_eq!(total(&registry, ""), sizes(base_set));
    assert_eq!(total(&registry, "a"), sizes(pirate) + sizes(aliased));

    // But it is nobody's to change.
    let commits = registry.stats().commits;
    wrong_publish(a.replace(base_set, tiny()), base_set);
    wrong(&a.retire(base_set).unwrap_err(), base_set);
    wrong(&a.transaction().retire(base_set).unwrap_err(), base_set);
    wrong(&a.keep_previous(base_set, 9).unwrap_err(), base_set);
    assert_eq!(registry.stats().commits, commits);
    assert!(a.catalog().get("base").is_none());
    a.retire(aliased).unwrap();
    a.retire(pirate).unwrap();
    registry.retire(base_set).unwrap();
    assert!(a.acquire(base_set).unwrap_err().is_not_found());
}

#[test]
fn a_tenant_changes_its_own_sets_at_one_instant() {
    let registry = registry();
    let a = registry.namespace("a").unwrap();
    registry.set_namespace_limits("a", none().sets(2)).unwrap();
    let mut first = a.transaction();
    let staged = first.stage(base()).unwrap();
    let b = first.publish("b", staged).unwrap();
    let staged = first.stage(lora().on(b)).unwrap();
    let l = first.publish("l", staged).unwrap();
    let refused = first
        .publish("third", a.stage(bytes(1, 1)).unwrap())
        .unwrap_err();
    assert!(refused.error().is_over_limit());
    drop(refused);
    assert_eq!(a.stats().sets, 2, "seats are taken when a set is added");
    assert_eq!(first.commit().unwrap().published, [b, l]);
    assert_eq!((a.lookup("b"), registry.lookup("b")), (Some(b), None));
    let mut second = a.transaction();
    second.rebind(l, b).unwrap();
    let staged = second.stage(base()).unwrap();
    second.replace(b, staged).unwrap();
    second.commit().unwrap();
    let mut third = a.transaction();
    third.retire(l).unwrap();
    third.retire(b).unwrap();
    for previous in third.commit().unwrap().previous {
        previous.reclaimed(SOON).unwrap();
    }
    assert_eq!((a.stats().sets, a.stats().bytes.total()), (0, 0));
    // One that is dropped gives its seats back.
    let mut dropped = a.transaction();
    dropped.publish("b", a.stage(bytes(1, 1)).unwrap()).unwrap();
    assert_eq!(a.stats().sets, 1);
    drop(dropped);
    assert_eq!((a.stats().sets, a.stats().bytes.total()), (0, 0));
}

#[test]
fn names_do_not_leave_their_namespace() {
    let registry = registry();
    let (a, b) = (
        registry.namespace("a").unwrap(),
        registry.namespace("b").unwrap(),
    );
    // The last two are different characters that look alike.
    let names = [
        "x",
        "b/x",
        "../b/x",
        "/x",
        "..",
        "a/x",
        "b\u{2215}x",
        "p",
        "\u{440}",
    ];
    let sets = names.map(|name| a.publish(name, bytes(1, 1)).unwrap());
    for (index, name) in names.into_iter().enumerate() {
        assert_eq!(a.lookup(name), Some(sets[index]));
        assert_eq!(registry.lookup(("a", name)), Some(sets[index]));
        assert_eq!((b.lookup(name), registry.lookup(name)), (None, None));
        assert!(sets[..index].iter().all(|set| *set != sets[index]));
    }
    // (a, bc) is not (ab, c), although they read alike one after the other.
    let ab = registry.namespace("ab").unwrap();
    let bc = a.publish("bc", bytes(1, 1)).unwrap();
    let c = ab.publish("c", bytes(1, 1)).unwrap();
    assert_eq!((a.lookup("bc"), ab.lookup("c")), (Some(bc), Some(c)));
    assert_eq!((a.lookup("c"), ab.lookup("bc")), (None, None));
    // A tenant whose own name has a separator.
    let slash = registry.namespace("a/x").unwrap();
    assert_eq!((slash.lookup("y"), slash.lookup("")), (None, None));
    let y = slash.publish("y", bytes(1, 1)).unwrap();
    assert_eq!((a.lookup("x/y"), slash.lookup("y")), (None, Some(y)));
    let listed = |tenant: &Namespace<'_>| tenant.catalog().entries().len();
    assert_eq!([&a, &b, &ab, &slash].map(listed), [10, 0, 1, 1]);

    let long = "n".repeat(513);
    for name in ["", "new\nline", "nul\0", long.as_str()] {
        let refused = a.publish(name, bytes(1, 1)).unwrap_err();
        assert!(
            matches!(refused.error(), Error::InvalidName { .. }),
            "{name:?}"
        );
        let invalid = registry.namespace(name).unwrap_err();
        assert!(matches!(invalid, Error::InvalidName { .. }), "{name:?}");
        if !name.is_empty() {
            assert!(registry.set_namespace_limits(name, none().sets(1)).is_err());
            assert!(registry.reserve_in(&Account::foreign(name), 1).is_err());
        }
    }
    assert_eq!(a.stats().sets, 10, "a refused name takes no seat");
}

/// A source that must not be asked for its bytes.
struct Unread(InMemory);

impl Source for Unread {
    fn plan(&self) -> &Plan {
        self.0.plan()
    }
    fn read_into(&self, _: &mut [u8]) -> Result<(), Error> {
        panic!("it was read although it does not fit")
    }
}

#[test]
fn a_full_tenant_is_refused_before_a_byte_is_read_and_nobody_else_notices() {
    let registry = registry();
    let (a, b) = (
        registry.namespace("a").unwrap(),
        registry.namespace("b").unwrap(),
    );
    registry
        .set_namespace_limits("a", none().bytes(2 * SMALL))
        .unwrap();
    let x = a.publish("x", bytes(1, 1)).unwrap();
    a.publish("y", bytes(1, 1)).unwrap();
    let refuse = |error: &Error| {
        let Error::OverAccountLimit {
            account,
            requested,
            in_use,
            limit,
        } = error
        else {
            panic!("{error:?}")
        };
        assert_eq!(*account, Account::namespace("a"));
        assert_eq!((*requested, *in_use, *limit), (SMALL, 2 * SMALL, 2 * SMALL));
        assert!(error.is_out_of_memory() && error.is_over_limit());
    };
    refuse(a.publish("z", Unread(bytes(1, 1))).unwrap_err().error());
    refuse(a.replace(x, Unread(bytes(1, 1))).unwrap_err().error());
    refuse(&a.stage(Unread(bytes(1, 1))).unwrap_err());
    refuse(&a.transaction().stage(Unread(bytes(1, 1))).unwrap_err());
    let plan = Source::plan(&bytes(1, 1)).clone();
    refuse(&a.fill(plan, None).unwrap_err());
    // The operator cannot overfill it either, and what it staged comes back.
    refuse(
        registry
            .publish(("a", "z"), Unread(bytes(1, 1)))
            .unwrap_err()
            .error(),
    );
    refuse(
        registry
            .replace(x, Unread(bytes(1, 1)))
            .unwrap_err()
            .error(),
    );
    let staged = registry.stage(bytes(1, 1)).unwrap();
    let refused = registry.publish_staged(("a", "z"), staged).unwrap_err();
    refuse(refused.error());
    let refused = registry
        .replace_staged(x, refused.into_staged().unwrap())
        .unwrap_err();
    refuse(refused.error());
    let mut both = registry.transaction();
    both.publish(("b", "first"), refused.into_staged().unwrap())
        .unwrap();
    both.publish(("a", "z"), registry.stage(bytes(1, 1)).unwrap())
        .unwrap();
    let refused = both.commit().unwrap_err();
    refuse(refused.error());
    assert_eq!(refused.step(), 1);
    assert_eq!(
        total(&registry, "b"),
        0,
        "the other step's charge went back"
    );
    let [first, _] = refused.into_staged().try_into().unwrap();

    assert_eq!(a.stats().sets, 2);
    let other = registry.publish_staged(("b", "first"), first).unwrap();
    b.replace(other, bytes(1, 2)).unwrap();
    assert!(b.publish("many", bytes(1 << 20, 1)).is_ok());
    // What goes makes room for what comes, when its bytes are back.
    a.retire(x).unwrap().reclaimed(SOON).unwrap();
    a.publish("z", bytes(1, 1)).unwrap();
}

#[test]
fn bytes_count_in_their_namespace_in_every_state() {
    let registry = registry();
    let a = registry.namespace("a").unwrap();
    let now = || {
        let bytes = a.stats().bytes;
        let mut states = [bytes.reserved, bytes.resident, bytes.kept, bytes.retired];
        states.iter_mut().for_each(|bytes| *bytes /= SMALL);
        states
    };
    let plan = Source::plan(&bytes(1, 1)).clone();
    let filling = a.fill(plan, None).unwrap();
    assert_eq!(now(), [1, 0, 0, 0], "a filling");
    filling.writer("w").unwrap().write(&[1]).unwrap();
    let staged = filling.seal().unwrap();
    assert_eq!(now(), [1, 0, 0, 0], "staged");
    let set = a.publish_staged("x", staged).unwrap();
    assert_eq!(now(), [0, 1, 0, 0]);
    a.keep_previous(set, 1).unwrap();
    a.replace(set, bytes(1, 2)).unwrap();
    assert_eq!(now(), [0, 1, 1, 0], "kept for a rollback");
    a.rollback(set).unwrap();
    assert_eq!(now(), [0, 1, 1, 0]);
    let lease = a.acquire(set).unwrap();
    a.keep_previous(set, 0).unwrap();
    let replaced = a.replace(set, bytes(1, 3)).unwrap();
    let others = registry.retired();
    let [_, resident, kept, retired] = now();
    assert_eq!((resident, kept), (1, 0));
    assert!(retired >= 1, "held by a lease");
    drop(lease);
    replaced.previous.reclaimed(SOON).unwrap();
    for other in others {
        other.reclaimed(SOON).unwrap();
    }
    let gone = a.retire(set).unwrap();
    gone.reclaimed(SOON).unwrap();
    assert_eq!(now(), [0; 4]);
    assert_eq!(registry.ledger().total(), 0);
    assert!(
        registry.accounts().is_empty(),
        "an idle namespace was not forgotten"
    );
}

#[test]
fn a_replace_that_drains_first_stays_within_its_namespace() {
    let registry = registry();
    let a = registry.namespace("a").unwrap();
    registry
        .set_namespace_limits("a", none().bytes(3 * SMALL))
        .unwrap();
    let set = a.publish("x", bytes(2 * SMALL as usize, 1)).unwrap();
    let refused = a.replace(set, bytes(2 * SMALL as usize, 2)).unwrap_err();
    assert!(matches!(refused.error(), Error::OverAccountLimit { .. }));
    // Larger than the old one, smaller, and too large even alone.
    for lines in [3, 1] {
        let source = bytes(lines * SMALL as usize, lines as u8);
        a.replace_drained(set, source, SOON).unwrap();
        assert_eq!(a.stats().bytes.resident, lines as u64 * SMALL);
        assert_eq!(a.stats().bytes.total(), registry.ledger().total());
    }
    let refused = a.replace_drained(set, bytes(4 * SMALL as usize, 4), SOON);
    assert!(refused.unwrap_err().error().is_over_limit());
    assert!(a.stats().bytes.peak <= 3 * SMALL);
    assert_eq!(
        registry
            .acquire(set)
            .unwrap()
            .set(set)
            .unwrap()
            .get("w")
            .unwrap()
            .bytes(),
        [1; 64]
    );
    // The operator does the same, and the bytes stay where they belong.
    registry
        .replace_drained(set, bytes(3 * SMALL as usize, 5), SOON)
        .unwrap();
    assert_eq!(a.stats().bytes.total(), 3 * SMALL);
}

#[test]
fn limits_can_be_changed_at_any_time_and_take_nothing_away() {
    let registry = registry();
    let a = registry.namespace("a").unwrap();
    let x = a.publish("x", bytes(1, 1)).unwrap();
    a.publish("y", bytes(1, 1)).unwrap();
    let limits = none().bytes(SMALL).sets(1);
    registry.set_namespace_limits("a", limits).unwrap();
    let stats = a.stats();
    assert_eq!((stats.limits, stats.sets), (limits, 2));
    assert!(a.acquire(x).is_ok(), "what is there stays");
    let refused = a.publish("z", Unread(bytes(1, 1))).unwrap_err();
    let Error::TooManySets {
        set,
        in_use: 2,
        limit: 1,
    } = refused.error()
    else {
        panic!("{refused}")
    };
    assert_eq!(*set, SetName::from(("a", "z")));
    registry
        .set_namespace_limits("a", none().bytes(SMALL))
        .unwrap();
    let refused = a.publish("z", Unread(bytes(1, 1))).unwrap_err();
    assert!(matches!(refused.error(), Error::OverAccountLimit { .. }));
    registry.set_namespace_limits("a", none()).unwrap();
    a.publish("z", bytes(1, 1)).unwrap();
    assert_eq!((a.stats().sets, a.stats().limits), (3, none()));
    // The default namespace has limits, too, though no view.
    registry.set_namespace_limits("", none().sets(1)).unwrap();
    registry.publish("only", bytes(1, 1)).unwrap();
    assert!(
        registry
            .publish("more", bytes(1, 1))
            .unwrap_err()
            .error()
            .is_over_limit()
    );
    assert_eq!(registry.namespace_stats("").sets, 1);
}

struct Breaks(InMemory, bool);

impl Source for Breaks {
    fn plan(&self) -> &Plan {
        self.0.plan()
    }
    fn read_into(&self, _: &mut [u8]) -> Result<(), Error> {
        assert!(!self.1, "a source that panics");
        Err(Error::InvalidTensor {
            tensor: "w".to_owned(),
            reason: "broken".to_owned(),
        })
    }
}

#[test]
fn what_fails_gives_back_its_bytes_and_its_seat() {
    let registry = registry();
    let a = registry.namespace("a").unwrap();
    registry
        .set_namespace_limits("a", none().bytes(2 * SMALL).sets(2))
        .unwrap();
    let x = a.publish("x", bytes(1, 1)).unwrap();
    let check = || assert_eq!((a.stats().sets, total(&registry, "a")), (1, SMALL));
    assert!(a.publish("y", Breaks(bytes(1, 1), false)).is_err());
    check();
    let panics = std::panic::AssertUnwindSafe(|| a.publish("y", Breaks(bytes(1, 1), true)));
    assert!(std::panic::catch_unwind(panics).is_err());
    check();
    assert!(a.replace(x, Breaks(bytes(1, 1), false)).is_err());
    check();
    // The name is taken: the staged set comes back, and stays the tenant's until it is dropped.
    let staged = a.stage(bytes(1, 2)).unwrap();
    let refused = a.publish_staged("x", staged).unwrap_err();
    assert!(matches!(refused.error(), Error::AlreadyPublished { .. }));
    let staged = refused.into_staged().unwrap();
    assert_eq!((a.stats().sets, total(&registry, "a")), (1, 2 * SMALL));
    let b = registry.namespace("b").unwrap();
    let refused = b.publish_staged("x", staged).unwrap_err();
    let Error::ChargedElsewhere {
        charged_to,
        offered_to,
    } = refused.error()
    else {
        panic!("{refused}")
    };
    assert_eq!(*charged_to, Account::namespace("a"));
    assert_eq!(*offered_to, Account::namespace("b"));
    assert_eq!((b.stats().sets, b.lookup("x")), (0, None));
    let staged = refused.into_staged().unwrap();
    let refused = registry.publish_staged("x", staged).unwrap_err();
    assert!(matches!(refused.error(), Error::ChargedElsewhere { .. }));
    drop(refused);
    check();
    // What nobody's account had is nobody's again after a commit that failed.
    let stale = a.publish("gone", bytes(1, 1)).unwrap();
    let mut late = registry.transaction();
    late.replace(stale, registry.stage(bytes(1, 3)).unwrap())
        .unwrap();
    a.retire(stale).unwrap().reclaimed(SOON).unwrap();
    let [staged] = late.commit().unwrap_err().into_staged().try_into().unwrap();
    check();
    assert_eq!(registry.ledger().reserved, staged.bytes());
    assert!(
        registry.publish_staged(("b", "x"), staged).is_ok(),
        "it can go anywhere"
    );
}

#[test]
fn limits_are_exact_under_a_race() {
    const THREADS: usize = 32;
    const BYTES: u64 = 5 * SMALL;
    const SETS: usize = 7;
    let registry = registry();
    registry
        .set_namespace_limits("bytes", none().bytes(BYTES))
        .unwrap();
    registry
        .set_namespace_limits("sets", none().sets(SETS))
        .unwrap();
    let start = Barrier::new(THREADS);
    let (fitted, seated) = (AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (registry, start) = (&registry, &start);
            let (fitted, seated) = (&fitted, &seated);
            scope.spawn(move || {
                let of_bytes = registry.namespace("bytes").unwrap();
                let of_sets = registry.namespace("sets").unwrap();
                let name = format!("set-{thread}");
                start.wait();
                for round in 0..20 {
                    // By all ways in: charged from the start, or assigned by the commit.
                    let first = match (thread + round) % 3 {
                        0 => of_bytes.publish(&name, bytes(1, 1)),
                        1 => {
                            let staged = registry.stage(bytes(1, 1)).unwrap();
                            registry.publish_staged(("bytes", &*name), staged)
                        }
                        _ => {
                            let mut one = registry.transaction();
                            let staged = one.stage(bytes(1, 1)).unwrap();
                            let set = one.publish(("bytes", &*name), staged).unwrap();
                            match one.commit() {
                                Ok(_) => Ok(set),
                                Err(failed) => Err(Error::from(failed).into()),
                            }
                        }
                    };
                    let second = of_sets.publish(&name, bytes(1, 1));
                    assert!(of_bytes.stats().bytes.total() <= BYTES);
                    assert!(of_sets.stats().sets <= SETS);
                    assert!(registry.lookup(("sets", &*name)).is_some() == second.is_ok());
                    for (answer, count) in [(first, fitted), (second, seated)] {
                        match answer {
                            Ok(set) => {
                                count.fetch_add(1, Ordering::Relaxed);
                                registry.retire(set).unwrap();
                            }
                            Err(failed) => assert!(failed.error().is_over_limit(), "{failed}"),
                        }
                    }
                }
            });
        }
    });
    assert!(fitted.into_inner() > 0 && seated.into_inner() > 0);
    for retirement in registry.retired() {
        retirement.reclaimed(SOON).unwrap();
    }
    let (of_bytes, of_sets) = (
        registry.namespace_stats("bytes"),
        registry.namespace_stats("sets"),
    );
    assert!(of_bytes.bytes.peak <= BYTES);
    assert_eq!((of_bytes.bytes.total(), of_sets.bytes.total()), (0, 0));
    assert_eq!(
        (of_bytes.sets, of_sets.sets, registry.stats().sets),
        (0, 0, 0)
    );
    // Nothing was lost on the way: it can be filled to the brim, and not beyond.
    let brim = |name: &str, limit: usize| {
        let tenant = registry.namespace(name).unwrap();
        let fits = |number: usize| tenant.publish(&number.to_string(), bytes(1, 1)).is_ok();
        assert_eq!((0..2 * limit).filter(|number| fits(*number)).count(), limit);
    };
    brim("bytes", 5);
    brim("sets", SETS);
}

#[test]
fn accounts_for_memory_that_others_own_are_apart_from_the_total() {
    let registry = WeightRegistry::builder().limit_bytes(4096).build().unwrap();
    let gpu = Account::foreign("gpu0");
    registry.set_account_limit(&gpu, Some(1 << 40)).unwrap();
    let cache = registry.reserve_in(&gpu, 1 << 39).unwrap();
    let refused = registry.reserve_in(&gpu, 1 << 40).unwrap_err();
    assert!(refused.to_string().contains("gpu0"), "{refused}");
    registry.publish(("gpu0", "x"), bytes(1, 1)).unwrap();
    let of_tenant = registry.reserve_in(&Account::namespace("a"), 4000).unwrap();
    assert_eq!(registry.ledger().total(), 4000 + SMALL);
    assert_eq!(of_tenant.account(), Some(Account::namespace("a")));
    assert!(matches!(
        registry.publish("y", bytes(100, 1)).unwrap_err().error(),
        Error::OverLimit { .. }
    ));
    let all: Vec<_> = registry.accounts();
    let names: Vec<_> = all.iter().map(|(account, _)| account.to_string()).collect();
    assert_eq!(
        names,
        [
            "namespace \"a\"",
            "namespace \"gpu0\"",
            "foreign account \"gpu0\""
        ]
    );
    let in_total = all.iter().filter(|(account, _)| *account != gpu);
    let sum: u64 = in_total.map(|(_, now)| now.total()).sum();
    assert_eq!(sum, registry.ledger().total());
    drop((cache, of_tenant));
    assert_eq!(registry.account(&gpu).total(), 0);
    assert_eq!(registry.account(&gpu).peak, 1 << 39);
}
