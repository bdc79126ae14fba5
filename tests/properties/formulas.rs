//! Properties that a formula says.
//!
//! What lives here: names, plans, the ledger, scales of adapters, contents and layouts, each against a
//! second way to compute it. What does not: the registry as a whole (`registry`).

use proptest::prelude::*;
use weighbridge::layout::ModuleScale;
use weighbridge::ledger::{Charge, Ledger};
use weighbridge::source::{InMemory, PeftAdapter, Source};
use weighbridge::{Account, Dtype, Error, LedgerSnapshot, Plan, SetName, Shard, WeightRegistry};

use super::content;
use super::run::cases;

fn show<T: std::fmt::Debug>(case: &T) -> String {
    format!("{case:?}")
}

/// Text with everything that could be mistaken for something else.
fn text() -> BoxedStrategy<String> {
    let part = prop::sample::select(vec![
        "a",
        "b",
        "/",
        "\\",
        "\"",
        "'",
        " ",
        "u{2f}",
        "\u{202e}",
        "\u{e9}",
        "\n",
        "\0",
        "\t",
        "{",
        "\u{1f999}",
    ]);
    proptest::collection::vec(part, 0..6)
        .prop_map(|parts| parts.concat())
        .boxed()
}

/// What a name printed, read back: its parts, up to the first slash that is not escaped.
fn read_back(shown: &str) -> (String, String) {
    let inner = shown
        .strip_prefix('"')
        .and_then(|shown| shown.strip_suffix('"'));
    let mut rest = inner.expect("it is quoted").chars();
    let (mut namespace, mut name) = (None, String::new());
    while let Some(char) = rest.next() {
        match char {
            '/' if namespace.is_none() => namespace = Some(std::mem::take(&mut name)),
            '\\' => name.push(match rest.next() {
                Some('n') => '\n',
                Some('t') => '\t',
                Some('r') => '\r',
                Some('0') => '\0',
                Some('u') => {
                    let digits: String = rest
                        .by_ref()
                        .skip(1)
                        .take_while(|&char| char != '}')
                        .collect();
                    char::from_u32(u32::from_str_radix(&digits, 16).unwrap()).unwrap()
                }
                Some(itself) => itself,
                None => panic!("{shown} ends in the middle"),
            }),
            other => name.push(other),
        }
    }
    (namespace.unwrap_or_default(), name)
}

#[test]
fn names_can_be_read_back_and_are_ordered_by_their_parts() {
    cases(
        500,
        &(text(), text(), text(), text()),
        show,
        |(a, b, c, d)| {
            let one = SetName::from((a.as_str(), b.as_str()));
            assert_eq!((one.namespace(), one.name()), (a.as_str(), b.as_str()));
            assert_eq!(read_back(&format!("{one:?}")), (a.clone(), b.clone()));
            let plain = one.to_string();
            assert!(plain == format!("{one:?}") || format!("\"{plain}\"") == format!("{one:?}"));
            let other = SetName::from((c.as_str(), d.as_str()));
            assert_eq!(one.cmp(&other), (a, b).cmp(&(c, d)));
            assert_eq!(one == other, (a, b) == (c, d));
            let bad = |text: &str| text.chars().any(char::is_control);
            assert_eq!(one.validate().is_err(), b.is_empty() || bad(a) || bad(b));
        },
    );
    for (len, fits) in [(512, true), (513, false)] {
        let long = "x".repeat(len);
        assert_eq!(SetName::from(long.as_str()).validate().is_ok(), fits);
        assert_eq!(SetName::from((long.as_str(), "n")).validate().is_ok(), fits);
    }
}

fn dtypes() -> BoxedStrategy<(Dtype, u128)> {
    let all = [
        (Dtype::U8, 8),
        (Dtype::F16, 16),
        (Dtype::F32, 32),
        (Dtype::I64, 64),
        (Dtype::F4, 4),
    ];
    prop::sample::select(all.to_vec()).boxed()
}

#[test]
fn plans_add_up_and_are_aligned() {
    let side = prop_oneof![6 => 0..70usize, 1 => Just(usize::MAX), 1 => Just(1usize << 58)].boxed();
    let tensor = (
        "[a-d]{1,2}",
        dtypes(),
        proptest::collection::vec(side, 0..3),
    );
    cases(
        500,
        &proptest::collection::vec(tensor, 0..6).boxed(),
        show,
        |tensors| {
            let mut names: Vec<&String> = tensors.iter().map(|tensor| &tensor.0).collect();
            names.sort();
            let twice = names.windows(2).any(|pair| pair[0] == pair[1]);
            let mut sizes: Vec<(&String, Option<u128>)> = tensors
                .iter()
                .map(|(name, (_, bits), shape)| {
                    let product = shape.iter().try_fold(*bits, |bits, &side| {
                        let bits = bits.checked_mul(side as u128)?;
                        (bits <= u128::from(u64::MAX)).then_some(bits)
                    });
                    (
                        name,
                        product.filter(|bits| bits % 8 == 0).map(|bits| bits / 8),
                    )
                })
                .collect();
            sizes.sort();
            let lines = sizes
                .iter()
                .map(|size| size.1.map(|bytes| bytes.div_ceil(64) * 64));
            let total = lines
                .sum::<Option<u128>>()
                .filter(|&total| total <= u128::from(u64::MAX));
            let described = tensors
                .iter()
                .map(|(name, (dtype, _), shape)| (name, *dtype, shape.clone()));
            let (plan, total) = match (Plan::of("test", described), total, twice) {
                (Ok(plan), Some(total), false) => (plan, total),
                (Err(Error::InvalidTensor { .. }), None, _)
                | (Err(Error::InvalidTensor { .. }), _, true) => return,
                (plan, total, twice) => panic!("{plan:?}, {total:?} bytes, {twice}"),
            };
            assert_eq!(u128::from(plan.arena_bytes()), total);
            let mut end = 0u128;
            for (planned, (name, bytes)) in plan.tensors().iter().zip(&sizes) {
                assert_eq!(
                    (planned.name(), Some(u128::from(planned.byte_len()))),
                    (name.as_str(), *bytes)
                );
                assert_eq!(
                    u128::from(planned.offset()),
                    end,
                    "{name} is not where the last one ends"
                );
                end += bytes.unwrap().div_ceil(64) * 64;
            }
            if total <= 4096 {
                assert_eq!(
                    u128::from(plan.charged_bytes()),
                    total,
                    "whole lines and nothing else"
                );
            }
        },
    );
}

#[derive(Debug, Clone)]
enum Entry {
    Take(u64),
    TakeIn(usize, u64),
    Assign(usize, usize),
    Drop(usize),
    Limit(usize, Option<u64>),
}

fn accounts() -> [Account; 3] {
    [
        Account::namespace("a"),
        Account::namespace("b"),
        Account::foreign("gpu"),
    ]
}

fn is_foreign(account: &Account) -> bool {
    matches!(account, Account::Foreign(_))
}

#[test]
fn the_ledger_is_sums_of_numbers_that_never_overflow() {
    let bytes =
        || prop_oneof![4 => 0..200u64, 1 => Just(u64::MAX), 1 => Just(u64::MAX - 100)].boxed();
    let entry = prop_oneof![
        2 => bytes().prop_map(Entry::Take),
        4 => (0..3usize, bytes()).prop_map(|(account, bytes)| Entry::TakeIn(account, bytes)),
        3 => (0..6usize, 0..2usize).prop_map(|(charge, account)| Entry::Assign(charge, account)),
        3 => (0..6usize).prop_map(Entry::Drop),
        1 => (0..3usize, prop::option::of(bytes())).prop_map(|(account, limit)| Entry::Limit(account, limit)),
    ];
    let limit = prop_oneof![Just(u64::MAX), 0..900u64];
    let case = (limit, proptest::collection::vec(entry, 0..40)).boxed();
    cases(300, &case, show, |(limit, entries)| {
        let ledger = Ledger::new(*limit);
        let mut charges: Vec<(Charge, Option<Account>, u128)> = Vec::new();
        let mut limits: [Option<u64>; 3] = [None; 3];
        let mut peak = 0;
        for entry in entries {
            let sum = |charges: &[(Charge, Option<Account>, u128)],
                       which: &dyn Fn(&Option<Account>) -> bool| {
                charges
                    .iter()
                    .filter(|one| which(&one.1))
                    .map(|one| one.2)
                    .sum::<u128>()
            };
            let counts = |account: &Option<Account>| !account.as_ref().is_some_and(is_foreign);
            let fits = |charges: &[_], account: Option<&Account>, bytes: u64, total: bool| {
                let known = account
                    .and_then(|account| accounts().iter().position(|other| other == account));
                let own = known.and_then(|known| limits[known]).unwrap_or(u64::MAX);
                let in_own = sum(charges, &|other| {
                    account.is_some() && other.as_ref() == account
                });
                // Below what is in use, a limit refuses everything but nothing.
                let fits = |in_use: u128, limit: u64| {
                    bytes == 0 || in_use + u128::from(bytes) <= u128::from(limit)
                };
                let apart = account.is_some_and(is_foreign) || !total;
                let fits_own = account.is_none() || fits(in_own, own);
                fits_own && (apart || fits(sum(charges, &counts), *limit))
            };
            match entry {
                Entry::Take(bytes) => {
                    let taken = ledger.reserve(*bytes);
                    assert_eq!(
                        taken.is_ok(),
                        fits(&charges, None, *bytes, true),
                        "{taken:?}"
                    );
                    charges.extend(taken.ok().map(|taken| (taken, None, u128::from(*bytes))));
                }
                Entry::TakeIn(at, bytes) => {
                    let account = &accounts()[*at];
                    let taken = ledger.reserve_in(account, *bytes);
                    assert_eq!(
                        taken.is_ok(),
                        fits(&charges, Some(account), *bytes, true),
                        "{taken:?}"
                    );
                    let taken = taken.ok();
                    charges.extend(
                        taken.map(|taken| (taken, Some(account.clone()), u128::from(*bytes))),
                    );
                }
                Entry::Assign(at, to) => {
                    let Some((charge, now, bytes)) = charges.get(*at) else {
                        continue;
                    };
                    let account = &accounts()[*to];
                    let expected = match now {
                        Some(now) if is_foreign(now) || now == account => Some(false),
                        Some(_) => None,
                        None => fits(&charges, Some(account), *bytes as u64, false).then_some(true),
                    };
                    assert_eq!(charge.assign(account.name()).ok(), expected);
                    if expected == Some(true) {
                        charges[*at].1 = Some(account.clone());
                    }
                }
                Entry::Drop(at) if *at < charges.len() => drop(charges.remove(*at)),
                Entry::Drop(_) => {}
                Entry::Limit(at, limit) => {
                    ledger.set_limit(&accounts()[*at], *limit);
                    limits[*at] = *limit;
                }
            }
            let total = sum(&charges, &counts);
            peak = peak.max(total);
            let said = |now: LedgerSnapshot| u128::from(now.total());
            assert_eq!(said(ledger.snapshot()), total);
            assert_eq!(u128::from(ledger.snapshot().peak), peak);
            for (account, limit) in accounts().iter().zip(limits) {
                let own = sum(&charges, &|other| other.as_ref() == Some(account));
                assert_eq!(said(ledger.account(account)), own);
                assert_eq!(ledger.account(account).limit, limit.unwrap_or(u64::MAX));
            }
            let all = accounts();
            let listed = all.iter().zip(limits).filter(|(account, limit)| {
                let charged = charges.iter().any(|one| one.1.as_ref() == Some(account));
                charged || limit.is_some_and(|limit| limit != u64::MAX)
            });
            assert_eq!(ledger.accounts().len(), listed.count());
        }
        charges.clear();
        assert_eq!((ledger.snapshot().total(), ledger.reclaimed()), (0, 0));
    });
}

/// A module's name of up to three parts.
fn module() -> BoxedStrategy<String> {
    let part = prop::sample::select(vec!["q", "k", "up", "0", "1", "aq"]);
    proptest::collection::vec(part, 1..4)
        .prop_map(|parts| parts.join("."))
        .boxed()
}

/// The first key, in the file's order, that is the whole name or what is after some dot.
fn by_pattern(patterns: &[(String, u32)], module: &str) -> Option<u32> {
    let parts: Vec<&str> = module.split('.').collect();
    let ends = (0..parts.len()).map(|from| parts[from..].join("."));
    let ends: Vec<String> = ends.collect();
    patterns
        .iter()
        .find(|(key, _)| ends.contains(key))
        .map(|(_, value)| *value)
}

#[test]
fn scales_are_those_of_the_configuration() {
    let patterns = || proptest::collection::vec((module(), 1..5u32), 0..4);
    let modules = proptest::collection::btree_set(module(), 1..4);
    let case = (
        modules,
        patterns(),
        patterns(),
        1..5u32,
        0..20u32,
        prop::option::of(any::<bool>()),
    )
        .boxed();
    cases(
        150,
        &case,
        show,
        |(modules, ranks, alphas, rank, alpha, stabilised)| {
            let distinct = |patterns: &[(String, u32)]| {
                let mut keys: Vec<(String, u32)> = Vec::new();
                for (key, value) in patterns {
                    if keys.iter().all(|other| other.0 != *key) {
                        keys.push((key.clone(), *value));
                    }
                }
                keys
            };
            // A module cannot lie in another one: both would have the tensors.
            let inside =
                |one: &str, other: &str| one != other && one.starts_with(&format!("{other}."));
            let modules: Vec<&String> = modules
                .iter()
                .filter(|one| !modules.iter().any(|other| inside(one, other)))
                .collect();
            let (ranks, alphas) = (distinct(ranks), distinct(alphas));
            let rank_of = |module: &str| by_pattern(&ranks, module).unwrap_or(*rank);
            let table = |patterns: &[(String, u32)]| {
                let entries = patterns
                    .iter()
                    .map(|(key, value)| format!("{key:?}:{value}"));
                format!("{{{}}}", entries.collect::<Vec<_>>().join(","))
            };
            let flag = stabilised.map_or("null".to_owned(), |flag| flag.to_string());
            let config = format!(
                r#"{{"peft_type":"LORA","r":{rank},"lora_alpha":{alpha},"use_rslora":{flag},
               "target_modules":["q"],"rank_pattern":{},"alpha_pattern":{}}}"#,
                table(&ranks),
                table(&alphas)
            );
            let dir = tempfile::tempdir().unwrap();
            std::fs::write(dir.path().join("adapter_config.json"), config).unwrap();
            let (mut header, mut end) = (Vec::new(), 0);
            for module in &modules {
                let rank = rank_of(module) as usize;
                for (matrix, shape) in [("A", [rank, 3]), ("B", [2, rank])] {
                    let len = shape[0] * shape[1] * 4;
                    header.push(format!(
                    r#""base_model.model.{module}.lora_{matrix}.weight":{{"dtype":"F32","shape":{shape:?},"data_offsets":[{end},{}]}}"#,
                    end + len
                ));
                    end += len;
                }
            }
            let file = crate::support::file_of(&format!("{{{}}}", header.join(",")), end);
            std::fs::write(dir.path().join("adapter_model.safetensors"), file).unwrap();
            let adapter = PeftAdapter::open(dir.path()).unwrap();
            let scales: Vec<(String, ModuleScale)> = adapter
                .plan()
                .adapter()
                .unwrap()
                .modules()
                .map(|(module, scale)| (module.to_owned(), scale))
                .collect();
            assert_eq!(scales.len(), modules.len());
            for ((found, scale), module) in scales.iter().zip(modules) {
                assert_eq!(found, module);
                let rank = rank_of(module);
                let alpha = f64::from(by_pattern(&alphas, module).unwrap_or(*alpha));
                assert_eq!((scale.rank, scale.alpha), (rank, alpha), "{module}");
                // The factor times what it was divided by is alpha again; its square, where that is a root.
                let back = match stabilised {
                    Some(true) => (
                        scale.scaling * scale.scaling * f64::from(rank),
                        alpha * alpha,
                    ),
                    _ => (scale.scaling * f64::from(rank), alpha),
                };
                assert!(
                    (back.0 - back.1).abs() <= 1e-9 * back.1,
                    "{module}: {scale:?}"
                );
            }
        },
    );
}

#[test]
fn contents_are_what_their_format_says_and_layouts_are_shared() {
    // Of nothing there is one kind only.
    let tensor = (0..5usize, 0..3u8).prop_map(|(len, fill)| (len, if len == 0 { 0 } else { fill }));
    let set = || proptest::collection::btree_map("[a-c]{1,2}", tensor.clone(), 0..4);
    cases(
        60,
        &proptest::collection::vec(set(), 1..5).boxed(),
        show,
        |sets| {
            let registry = WeightRegistry::builder().build().unwrap();
            let mut identities = Vec::new();
            for (index, tensors) in sets.iter().enumerate() {
                let each: Vec<content::Tensor> = tensors
                    .iter()
                    .map(|(name, &(len, fill))| (name.clone(), vec![len], vec![fill; len]))
                    .collect();
                // Whatever the order in which they are added.
                let source =
                    each.iter()
                        .rev()
                        .fold(InMemory::new(), |set, (name, shape, bytes)| {
                            set.tensor(name, Dtype::U8, shape, bytes.clone()).unwrap()
                        });
                registry.publish(index.to_string(), source).unwrap();
                identities.push(content::identity(&each, None, false));
            }
            let catalog = registry.catalog();
            let found: Vec<String> = catalog
                .entries()
                .iter()
                .map(|entry| entry.identity.to_string())
                .collect();
            assert_eq!(found, identities);
            for (one, a) in sets.iter().zip(&identities) {
                for (other, b) in sets.iter().zip(&identities) {
                    assert_eq!(one == other, a == b, "one content, one digest");
                }
            }
            let shape =
                |set: &std::collections::BTreeMap<String, (usize, u8)>| -> Vec<(String, usize)> {
                    set.iter()
                        .map(|(name, one)| (name.clone(), one.0))
                        .collect()
                };
            let mut shapes: Vec<_> = sets.iter().map(shape).collect();
            shapes.sort();
            shapes.dedup();
            assert_eq!(
                registry.stats().layouts,
                shapes.len(),
                "one layout for all that have the same"
            );
        },
    );
}

#[test]
fn a_part_of_a_matrix_is_a_module_of_the_whole() {
    let case = (1..9usize, 1..9usize, 0..3u32, 0..4u32, 1..5u32).boxed();
    cases(200, &case, show, |&(rows, columns, dim, rank, world)| {
        let plan = Plan::of("test", [("m.weight", Dtype::F16, vec![rows, columns])]).unwrap();
        let plan = plan.shards(|_| Some(Shard { dim, rank, world }));
        if dim > 1 || rank >= world {
            assert!(plan.unwrap_err().is_malformed());
            return;
        }
        let plan = plan.unwrap();
        let shard = plan.tensors()[0].shard();
        assert_eq!(shard, (world > 1).then_some(Shard { dim, rank, world }));
        let registry = WeightRegistry::builder().build().unwrap();
        let filling = registry.fill(plan, None).unwrap();
        let mut writer = filling.writer("m.weight").unwrap();
        writer.write(&vec![0; 2 * rows * columns]).unwrap();
        drop(writer);
        let set = registry
            .publish_staged("s", filling.seal().unwrap())
            .unwrap();
        let mut whole = (rows, columns);
        match dim {
            0 => whole.0 *= world as usize,
            _ => whole.1 *= world as usize,
        }
        registry.scope(|scope| {
            let view = scope.get(set).unwrap();
            assert_eq!(view.layout().module_features("m"), Some(whole));
        });
    });
}
