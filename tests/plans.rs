//! What a plan says of itself, before anything is read or charged.

mod support;

use support::{bytes, fixture, registry, tiny};
use weighbridge::source::{InMemory, Source};
use weighbridge::{Dtype, Error, Plan};

fn base() -> InMemory {
    InMemory::new()
        .tensor("up.weight", Dtype::F32, [6, 4], [0; 96])
        .unwrap()
}

/// Two modules of one rank, so that nothing but their shapes tells them apart.
fn lora(rank: usize, features: usize) -> Result<Plan, Error> {
    Plan::of_adapter(
        "step 7",
        [("up", Dtype::F32, [rank, features], [6, rank], 4.0)],
    )
}

#[test]
fn where_it_comes_from() {
    assert_eq!(lora(2, 4).unwrap().origin(), "step 7");
    let path = fixture("tiny-llama");
    assert_eq!(tiny().plan().origin(), path.to_str().unwrap());
    assert_eq!(bytes(4, 1).plan().origin(), "memory");
}

#[test]
fn the_modules_of_an_adapter() {
    let plan = lora(2, 4).unwrap();
    let modules = plan.adapter().unwrap();
    assert!(!modules.is_empty());
    assert_eq!(modules.len(), 1);
    let told: Vec<_> = modules.modules().collect();
    let (name, scale) = told[0];
    assert_eq!(
        (name, scale.rank, scale.alpha, scale.scaling),
        ("up", 2, 4.0, 2.0)
    );
    assert!(bytes(4, 1).plan().adapter().is_none());
    // One that only puts tensors in the place of others.
    let registry = registry();
    let base = registry.publish("base", base()).unwrap();
    let replaces = InMemory::new()
        .replacement("up.weight", Dtype::F32, [6, 4], vec![1; 96])
        .unwrap()
        .on(base);
    let modules = replaces.plan().adapter().unwrap();
    assert!(modules.is_empty());
    assert_eq!((modules.len(), modules.modules().count()), (0, 0));
    registry.publish("replaces", replaces).unwrap();
}

#[test]
fn the_ranks_of_both_matrices_agree() {
    for (a, b) in [([0, 4], [6, 0]), ([2, 4], [6, 3]), ([3, 4], [6, 2])] {
        let refused = Plan::of_adapter("x", [("up", Dtype::F32, a, b, 1.0)]).unwrap_err();
        let Error::AdapterMismatch { module, reason, .. } = &refused else {
            panic!("{refused}")
        };
        assert_eq!(module, "up");
        for shape in [a, b] {
            assert!(reason.contains(&format!("{shape:?}")), "{reason}");
        }
    }
}

#[test]
fn whether_it_fits_is_said_without_a_registry() {
    let registry = registry();
    let set = registry.publish("base", base()).unwrap();
    let fits = |plan: Plan| {
        registry.scope(|scope| plan.check_fit(scope.get(set).unwrap().layout()).map(drop))
    };
    fits(lora(2, 4).unwrap()).unwrap();
    let refused = fits(lora(2, 5).unwrap()).unwrap_err();
    assert!(
        matches!(refused, Error::AdapterMismatch { .. }),
        "{refused}"
    );
}

#[test]
fn names_for_tensors_of_other_sets() {
    let registry = registry();
    let owner = registry.publish("owner", base()).unwrap();
    let target = registry.weight_handle(owner, "up.weight").unwrap();
    let plan = bytes(4, 1).plan().clone();
    let linked = plan.with_alias("linked", target).unwrap();
    let aliases: Vec<_> = linked
        .aliases()
        .iter()
        .map(|alias| (alias.name(), alias.target()))
        .collect();
    assert_eq!(aliases, [("linked", target)]);
    for taken in ["linked", "w"] {
        let refused = linked.clone().with_alias(taken, target).unwrap_err();
        assert!(
            matches!(&refused, Error::InvalidTensor { tensor, .. } if tensor == taken),
            "{refused}"
        );
    }
    let two = linked.with_alias("again", target).unwrap();
    assert_eq!(two.aliases().len(), 2);
    assert_eq!(two.charged_bytes(), bytes(4, 1).plan().charged_bytes());
}
