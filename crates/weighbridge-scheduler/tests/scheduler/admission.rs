//! Who is let in, and what who is not gets back.

use weighbridge::{Error, WeightRegistry};
use weighbridge_scheduler::{Limits, Refused, Scheduler, Why};

use crate::{SOON, World, checkpoint, lora};

#[test]
fn limits_of_zero_are_refused() {
    let world = World::new(0);
    let all = Limits::default();
    for (limits, named) in [
        (all.running(0), "running"),
        (all.adapters(0), "adapters"),
        (all.waiting(0), "waiting"),
        (all.ahead(0), "ahead"),
    ] {
        let refused = Scheduler::<()>::new(world.registry.clone(), limits);
        assert_eq!(refused.unwrap_err().limit, named);
    }
    assert!(Scheduler::<()>::new(world.registry.clone(), all.patience(0)).is_ok());
}

/// An adapter that is not there is an error at admission, and never the base.
#[test]
fn an_unknown_or_retired_adapter_is_refused_with_the_payload() {
    let world = World::new(2);
    let scheduler = world.scheduler(Limits::default());
    let by_name = |adapter: &'static str, payload| {
        scheduler.admit_by_name("base", Some(adapter.into()), "r", payload)
    };
    by_name("a0", 0).unwrap();

    let refused = by_name("a7", 1).unwrap_err();
    assert_eq!(refused.payload, 1);
    assert!(matches!(&refused.why, Why::Unknown { name } if name == "a7"));
    assert!(refused.to_string().contains("a7"));

    world.registry.retire(world.adapters[1]).unwrap();
    let refused = by_name("a1", 2).unwrap_err();
    assert!(matches!(refused.why, Why::Unknown { .. }) && refused.payload == 2);
    let refused = scheduler.admit(world.base, Some(world.adapters[1]), "r", 3);
    let refused = refused.unwrap_err();
    assert_eq!(refused.payload, 3);
    let stale = |why: &Why, set| matches!(why, Why::Registry(Error::StaleHandle { handle }) if *handle == set);
    assert!(stale(&refused.why, world.adapters[1]), "{refused}");

    let refused = scheduler.admit_by_name("nobody", None, "r", 4).unwrap_err();
    assert!(matches!(refused.why, Why::Unknown { name } if name == "nobody"));
    let stats = scheduler.stats();
    assert_eq!((stats.admitted, stats.refused, stats.waiting), (1, 4, 1));
}

/// Also where nothing is resident, so that nothing is loaded in vain.
#[test]
fn what_does_not_belong_together_is_refused() {
    let world = World::new(1);
    let other = world.registry.publish("other", checkpoint()).unwrap();
    let scheduler = world.scheduler(Limits::default());
    let why = |base, adapter| -> Why {
        let refused: Refused<()> = scheduler.admit(base, adapter, "r", ()).unwrap_err();
        refused.why
    };
    for evicted in [false, true] {
        if evicted {
            world.registry.evict(world.adapters[0]).unwrap();
        }
        let wrong = why(other, Some(world.adapters[0]));
        let Why::Registry(Error::WrongBase {
            adapter, leased, ..
        }) = wrong
        else {
            panic!("{wrong}")
        };
        assert_eq!((adapter.name(), leased.unwrap().name()), ("a0", "other"));
        let adapter_as_base = why(world.adapters[0], None);
        assert!(matches!(
            adapter_as_base,
            Why::Registry(Error::NotABase { .. })
        ));
    }
    let no_adapter = why(world.base, Some(other));
    assert!(matches!(no_adapter, Why::NotAnAdapter { set } if set == other));

    let elsewhere = WeightRegistry::builder().build().unwrap();
    let base = elsewhere.publish("base", checkpoint()).unwrap();
    let adapter = elsewhere.publish("adapter", lora(base, 1)).unwrap();
    for (base, adapter) in [(base, None), (world.base, Some(adapter))] {
        let wrong = why(base, adapter);
        assert!(matches!(wrong, Why::Registry(Error::WrongRegistry { .. })));
    }
    assert_eq!(scheduler.waiting(), 0);
}

#[test]
fn a_full_queue_gives_the_payload_back_and_keeps_no_lease() {
    let world = World::new(2);
    let scheduler = world.scheduler(Limits::default().waiting(2));
    let [a, b] = [world.adapters[0], world.adapters[1]];
    scheduler.admit(world.base, Some(a), "r", 1).unwrap();
    scheduler.admit(world.base, None, "r", 2).unwrap();
    let refused = scheduler.admit(world.base, Some(b), "r", 3).unwrap_err();
    assert_eq!(refused.payload, 3);
    assert!(matches!(refused.why, Why::Full { waiting: 2 }));
    world.registry.retire(b).unwrap().reclaimed(SOON).unwrap();

    let round = scheduler.schedule();
    assert_eq!(round.joined.len(), 2);
    scheduler.admit(world.base, None, "r", 4).unwrap();
}

/// The lease says who it is for, to whoever waits for the weights.
#[test]
fn a_lease_of_who_waits_is_labelled() {
    let world = World::new(1);
    let scheduler = world.scheduler(Limits::default());
    let adapter = world.adapters[0];
    scheduler
        .admit(world.base, Some(adapter), "request-42", ())
        .unwrap();
    let going = world.registry.retire(adapter).unwrap();
    assert_eq!(going.holders()[0].label, "request-42");
}
