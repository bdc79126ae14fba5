//! Operations, and how they are drawn.
//!
//! What lives here: everything that a case can do, written so that a printed case can be pasted into a
//! test, and the weights. What does not: doing it (`drive`).
//!
//! Operations name registers, not things: a set is "what was last published under this name", a lease
//! "what is in this place". So a case stays meaningful when shrinking takes operations away: what
//! concerns an empty register is skipped.

use proptest::prelude::*;

use super::content::Offer;

/// Names, of which each is in one namespace: two in the default one, two in `t`, one in `u`.
pub const NAMES: [(&str, &str); 6] = [
    ("", "a"),
    ("", "b"),
    ("", "c"),
    ("t", "d"),
    ("t", "e"),
    ("u", "f"),
];
pub const TENANTS: [&str; 2] = ["t", "u"];
pub const LEASES: usize = 4;
pub const STAGED: usize = 2;
pub const PINS: usize = 2;

/// A set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Who {
    /// The one that was last published under this name.
    Set(usize),
    /// The one before: its handle is stale.
    Former(usize),
    /// One of another registry.
    Stranger,
}

/// Through what it is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    Operator,
    Tenant(usize),
}

/// A generation that is demanded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    Whatever,
    Current,
    /// Of this commit, whether or not it is one of the set's.
    Number(u64),
}

/// How a lease is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    ByCall,
    Labelled,
    ByReader,
    /// As of the open scope.
    InScope,
    AsTenant(usize),
}

#[derive(Debug, Clone, PartialEq)]
pub enum Op {
    Publish(By, usize, Offer),
    /// A name that is none.
    PublishBadName,
    Replace(By, Who, When, Offer),
    ReplaceDrained(By, Who, Offer),
    Retire(By, Who, When),
    Cascade(Who),
    Revoke(Who),
    RetireAfter(Who),
    Rebind(By, Who, Who),
    Keep(By, Who, usize),
    Rollback(By, Who),
    RollbackTo(By, Who, When),
    Stage(By, usize, Offer),
    DropStaged(usize),
    PublishStaged(By, usize, usize),
    ReplaceStaged(By, Who, When, usize),
    /// Offers what is staged to a registry that did not stage it.
    PublishElsewhere(usize),
    Fill(By, usize),
    Write(usize),
    Seal(usize),
    TxPublish(usize, Offer),
    TxReplace(Who, When, Offer),
    TxRetire(Who, When),
    TxCascade(Who),
    TxRebind(Who, Who),
    TxRebindAll(Who),
    TxRollback(Who),
    TxCommit,
    TxDrop,
    Acquire(Way, usize, Vec<Who>),
    Evict(Who),
    Load(Who),
    Pin(usize, Who),
    Unpin(usize),
    /// Acquires what may be away, without any patience.
    AcquireOrLoad(usize, Vec<Who>),
    CloneLease(usize, usize),
    DropLease(usize),
    /// A lease is given to a fence.
    Fence(usize),
    /// The oldest fence, or the newest, has passed.
    Signal(bool),
    OpenScope,
    RefreshScope,
    CloseScope,
    LimitTenant(usize, Option<u64>, Option<usize>),
    Reserve(bool, u64),
    Unreserve,
}

fn name() -> BoxedStrategy<usize> {
    (0..NAMES.len()).boxed()
}

fn who() -> BoxedStrategy<Who> {
    prop_oneof![
        40 => name().prop_map(Who::Set),
        2 => name().prop_map(Who::Former),
        1 => Just(Who::Stranger),
    ]
    .boxed()
}

/// What may be a base: mostly what is published first.
fn base() -> BoxedStrategy<Who> {
    prop_oneof![6 => (0..2usize).prop_map(Who::Set), 2 => who()].boxed()
}

fn by() -> BoxedStrategy<By> {
    prop_oneof![4 => Just(By::Operator), 1 => (0..TENANTS.len()).prop_map(By::Tenant)].boxed()
}

fn when() -> BoxedStrategy<When> {
    prop_oneof![
        4 => Just(When::Whatever),
        2 => Just(When::Current),
        1 => (0..12u64).prop_map(When::Number),
    ]
    .boxed()
}

fn len() -> BoxedStrategy<usize> {
    prop_oneof![4 => Just(64usize), 1 => Just(0), 2 => Just(100), 1 => Just(200), 1 => Just(640)]
        .boxed()
}

fn offer() -> BoxedStrategy<Offer> {
    let fill = any::<u8>;
    prop_oneof![
        5 => (len(), fill()).prop_map(|(len, fill)| Offer::Plain(len, fill)),
        5 => (1..3usize, fill()).prop_map(|(outs, fill)| Offer::Base(outs, fill)),
        4 => (base(), fill()).prop_map(|(of, fill)| Offer::Tied(of, fill)),
        3 => (base(), len(), fill()).prop_map(|(on, len, fill)| Offer::Patch(on, len, fill)),
        3 => (base(), 1..3usize, fill()).prop_map(|(on, outs, fill)| Offer::Lora(on, outs, fill)),
        1 => base().prop_map(Offer::Idle),
        1 => len().prop_map(Offer::Broken),
    ]
    .boxed()
}

fn way() -> BoxedStrategy<Way> {
    prop_oneof![
        3 => Just(Way::ByCall),
        2 => Just(Way::Labelled),
        1 => Just(Way::ByReader),
        2 => Just(Way::InScope),
        2 => (0..TENANTS.len()).prop_map(Way::AsTenant),
    ]
    .boxed()
}

/// One operation that is not a part of a transaction.
fn single() -> BoxedStrategy<Op> {
    let publish = prop_oneof![
        24 => (by(), name(), offer()).prop_map(|(by, name, offer)| Op::Publish(by, name, offer)),
        1 => Just(Op::PublishBadName),
    ];
    let replace = prop_oneof![
        10 => (by(), who(), when(), offer())
            .prop_map(|(by, who, when, offer)| Op::Replace(by, who, when, offer)),
        6 => (by(), who(), offer()).prop_map(|(by, who, offer)| Op::ReplaceDrained(by, who, offer)),
        2 => (who(), len()).prop_map(|(who, len)| {
            Op::ReplaceDrained(By::Operator, who, Offer::Broken(len))
        }),
        2 => (by(), who(), base()).prop_map(|(by, adapter, base)| Op::Rebind(by, adapter, base)),
    ];
    let end = prop_oneof![
        8 => (by(), who(), when()).prop_map(|(by, who, when)| Op::Retire(by, who, when)),
        1 => who().prop_map(Op::Cascade),
        1 => who().prop_map(Op::Revoke),
        1 => who().prop_map(Op::RetireAfter),
    ];
    let back = prop_oneof![
        2 => (by(), who(), 0..3usize).prop_map(|(by, who, n)| Op::Keep(by, who, n)),
        4 => (by(), who()).prop_map(|(by, who)| Op::Rollback(by, who)),
        1 => (by(), who(), when()).prop_map(|(by, who, when)| Op::RollbackTo(by, who, when)),
    ];
    let place = || 0..STAGED;
    let stage = prop_oneof![
        4 => (by(), place(), offer()).prop_map(|(by, at, offer)| Op::Stage(by, at, offer)),
        1 => place().prop_map(Op::DropStaged),
        3 => (by(), name(), place()).prop_map(|(by, name, at)| Op::PublishStaged(by, name, at)),
        3 => (by(), who(), when(), place())
            .prop_map(|(by, who, when, at)| Op::ReplaceStaged(by, who, when, at)),
        1 => place().prop_map(Op::PublishElsewhere),
        2 => (by(), place()).prop_map(|(by, at)| Op::Fill(by, at)),
        3 => place().prop_map(Op::Write),
        2 => place().prop_map(Op::Seal),
    ];
    let lease = || 0..LEASES;
    let sets = prop_oneof![
        2 => who().prop_map(|one| vec![one]),
        3 => proptest::collection::vec(who(), 1..4),
        2 => (base(), 2..NAMES.len()).prop_map(|(base, other)| vec![base, Who::Set(other)]),
    ]
    .boxed();
    let moves = prop_oneof![
        8 => who().prop_map(Op::Evict),
        3 => who().prop_map(Op::Load),
        10 => (lease(), sets.clone()).prop_map(|(at, sets)| Op::AcquireOrLoad(at, sets)),
        2 => (0..PINS, who()).prop_map(|(at, who)| Op::Pin(at, who)),
        1 => (0..PINS).prop_map(Op::Unpin),
    ];
    let lease = prop_oneof![
        8 => (way(), lease(), sets).prop_map(|(way, at, sets)| Op::Acquire(way, at, sets)),
        2 => (lease(), lease()).prop_map(|(from, to)| Op::CloneLease(from, to)),
        6 => lease().prop_map(Op::DropLease),
        1 => lease().prop_map(Op::Fence),
        1 => any::<bool>().prop_map(Op::Signal),
    ];
    let scope = prop_oneof![
        3 => Just(Op::OpenScope),
        1 => Just(Op::RefreshScope),
        1 => Just(Op::CloseScope),
    ];
    let limits = prop_oneof![
        2 => (
            0..TENANTS.len(),
            prop::option::of((0..8u64).prop_map(|lines| 64 * lines)),
            prop::option::of(0..3usize)
        )
            .prop_map(|(tenant, bytes, sets)| Op::LimitTenant(tenant, bytes, sets)),
        1 => (any::<bool>(), 0..300u64).prop_map(|(foreign, bytes)| Op::Reserve(foreign, bytes)),
        1 => Just(Op::Unreserve),
    ];
    prop_oneof![
        15 => publish.boxed(),
        16 => replace.boxed(),
        9 => end.boxed(),
        8 => back.boxed(),
        8 => stage.boxed(),
        20 => lease.boxed(),
        20 => moves.boxed(),
        3 => scope.boxed(),
        3 => limits.boxed(),
    ]
    .boxed()
}

fn step() -> BoxedStrategy<Op> {
    prop_oneof![
        4 => (name(), offer()).prop_map(|(name, offer)| Op::TxPublish(name, offer)),
        4 => (who(), when(), offer()).prop_map(|(who, when, offer)| Op::TxReplace(who, when, offer)),
        3 => (who(), when()).prop_map(|(who, when)| Op::TxRetire(who, when)),
        1 => who().prop_map(Op::TxCascade),
        2 => (who(), who()).prop_map(|(adapter, base)| Op::TxRebind(adapter, base)),
        2 => who().prop_map(Op::TxRebindAll),
        2 => who().prop_map(Op::TxRollback),
    ].boxed()
}

/// A few steps, with or without something in between, and mostly a commit.
fn transaction() -> BoxedStrategy<Vec<Op>> {
    let steps = proptest::collection::vec(prop_oneof![8 => step(), 1 => single()], 1..6);
    let end =
        prop_oneof![6 => Just(vec![Op::TxCommit]), 1 => Just(vec![Op::TxDrop]), 1 => Just(vec![])];
    (steps, end)
        .prop_map(|(steps, end)| [steps, end].concat())
        .boxed()
}

/// Staged, and offered as somebody's next generation.
fn staged_swap() -> BoxedStrategy<Vec<Op>> {
    (by(), 0..STAGED, offer(), by(), who(), when())
        .prop_map(|(by, at, offer, other, who, when)| {
            vec![
                Op::Stage(by, at, offer),
                Op::ReplaceStaged(other, who, when, at),
            ]
        })
        .boxed()
}

/// A tenant has no room for two generations of what it has, and is given the next one all the same.
fn squeeze() -> BoxedStrategy<Vec<Op>> {
    let offer = prop_oneof![1 => len().prop_map(Offer::Broken), 1 => offer()];
    let held = prop_oneof![1 => Just(None), 1 => (0..LEASES).prop_map(Some)];
    (3..5usize, 1..4u64, offer, held)
        .prop_map(|(name, lines, offer, held)| {
            let set = Who::Set(name);
            let lease = |at| Op::Acquire(Way::ByCall, at, vec![set]);
            let limit = Op::LimitTenant(0, Some(64 * lines), None);
            let swap = Op::ReplaceDrained(By::Operator, set, offer);
            let before = held.map(lease);
            let load = Op::Load(set);
            before
                .into_iter()
                .chain([limit, swap, load, lease(0)])
                .collect()
        })
        .boxed()
}

/// Sets that do not all fit, of which those are wanted that are away.
fn crowd() -> BoxedStrategy<Vec<Op>> {
    let len = prop_oneof![Just(64usize), Just(100), Just(200), Just(300), Just(640)];
    let comes = (name(), len, any::<u8>(), 0..4usize).prop_map(|(name, len, fill, stays)| {
        let set = Who::Set(name);
        // Most can be read again.
        let offer = Offer::Plain(len, if stays == 0 { fill } else { fill | 1 });
        vec![
            Op::Retire(By::Operator, set, When::Whatever),
            Op::Publish(By::Operator, name, offer),
            Op::Evict(set),
        ]
    });
    let wanted = (
        0..LEASES,
        proptest::collection::vec(name(), 1..4),
        0..6usize,
    );
    let wanted = wanted.prop_map(|(at, names, kept)| {
        let sets: Vec<Who> = names.into_iter().map(Who::Set).collect();
        let wants = Op::AcquireOrLoad(at, sets);
        match kept {
            0 | 1 => vec![wants],
            2 => vec![wants, Op::Pin(0, Who::Set(at))],
            _ => vec![wants, Op::DropLease(at)],
        }
    });
    let limit = (0..TENANTS.len(), 0..10u64)
        .prop_map(|(tenant, lines)| Op::LimitTenant(tenant, Some(64 * lines), None));
    let limit = prop::option::weighted(0.3, limit);
    let comes = proptest::collection::vec(comes, 3..7);
    let wanted = proptest::collection::vec(wanted, 2..8);
    (comes, limit, wanted)
        .prop_map(|(comes, limit, wanted)| {
            let wanted = wanted.concat();
            let comes = comes.concat();
            // Its sets are retired, and which of several it would be refused for does not matter here.
            [Op::TxDrop]
                .into_iter()
                .chain(comes)
                .chain(limit)
                .chain(wanted)
                .collect()
        })
        .boxed()
}

/// Something to begin with: sets that stand on each other, of which some may be left out.
fn beginning() -> BoxedStrategy<Vec<Op>> {
    let maybe = |op: BoxedStrategy<Op>| prop::option::weighted(0.8, op);
    let publish = |name: usize, offer: fn(u8) -> Offer| {
        let op = any::<u8>().prop_map(move |fill| Op::Publish(By::Operator, name, offer(fill)));
        maybe(op.boxed())
    };
    let all = (
        publish(0, |fill| Offer::Base(1, fill)),
        publish(1, |fill| Offer::Plain(64, fill)),
        publish(2, |fill| Offer::Lora(Who::Set(0), 1, fill)),
        publish(3, |fill| Offer::Tied(Who::Set(1), fill)),
        publish(4, |fill| Offer::Base(1, fill)),
    );
    let all = all.prop_map(|(a, b, c, d, e)| [a, b, c, d, e].into_iter().flatten().collect());
    prop_oneof![3 => all, 1 => Just(Vec::new())].boxed()
}

/// A case.
pub fn case() -> BoxedStrategy<Vec<Op>> {
    let some = prop_oneof![
        20 => single().prop_map(|one| vec![one]),
        1 => staged_swap(),
        1 => squeeze(),
        1 => crowd(),
        2 => transaction(),
    ];
    (beginning(), proptest::collection::vec(some, 1..70))
        .prop_map(|(beginning, parts)| [beginning, parts.concat()].concat())
        .boxed()
}
