//! Whole files: loaded, loaded again, lent by name.

use super::*;

#[test]
fn loading_a_file_again_is_the_same_unless_it_changed() {
    let flat = flat();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    std::fs::copy(fixture("tiny-llama/model.safetensors"), &path).unwrap();
    let open = || Checkpoint::open(&path).unwrap();
    let first = flat.load("llama", open()).unwrap();
    assert!(first.is_new());
    let set = first.handle();
    untouched(&flat, || {
        assert_eq!(flat.load("llama", open()).unwrap(), Registered::Reused(set));
    });
    // The same path, other bytes.
    let mut content = std::fs::read(&path).unwrap();
    *content.last_mut().unwrap() ^= 1;
    std::fs::write(&path, &content).unwrap();
    let refused = untouched(&flat, || flat.load("llama", open()).unwrap_err());
    assert!(
        matches!(refused, Error::AlreadyPublished { .. }),
        "{refused}"
    );
    // Changed between its header and its last byte.
    let opened = open();
    content.truncate(content.len() - 1);
    std::fs::write(&path, &content).unwrap();
    let refused = untouched(&flat, || flat.load("other", opened).unwrap_err());
    assert!(matches!(refused, Error::SourceChanged { .. }), "{refused}");
    assert!(flat.registry().lookup("other").is_none());
    // Adapters with the same content on another base are something else.
    let twin = flat.registry().publish("twin", tiny()).unwrap();
    let base = flat.registry().publish("base", tiny()).unwrap();
    let pirate = |base| flat.load("pirate", adapter("pirate-v1", base));
    assert!(pirate(base).unwrap().is_new() && !pirate(base).unwrap().is_new());
    let refused = pirate(twin).unwrap_err().to_string();
    assert!(
        refused.contains("on base") && refused.contains("on twin"),
        "{refused}"
    );
}

#[test]
fn a_declared_file_is_compared_unread() {
    struct Never(weighbridge::Plan);
    impl Source for Never {
        fn plan(&self) -> &weighbridge::Plan {
            &self.0
        }
        fn read_into(&self, _: &mut [u8]) -> Result<(), Error> {
            panic!("was read")
        }
        fn declared(&self) -> Option<&str> {
            Some("r1")
        }
    }
    let flat = flat();
    let set = flat.load("s", bytes(4, 1).declared("r1")).unwrap().handle();
    let plan = bytes(4, 1).plan().clone();
    let again = flat.load("s", Never(plan)).unwrap();
    assert_eq!(again, Registered::Reused(set));
    assert!(flat.load("s", bytes(4, 1).declared("r2")).is_err());
}

#[test]
fn of_many_who_load_one_name_one_creates_it() {
    let flat = flat();
    for round in 0..50 {
        let name = format!("s{round}");
        let results: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4)
                .map(|_| scope.spawn(|| flat.load(&*name, bytes(4, 1)).unwrap()))
                .collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap())
                .collect()
        });
        assert_eq!(results.iter().filter(|result| result.is_new()).count(), 1);
        assert!(results.iter().all(|it| it.handle() == results[0].handle()));
    }
}

/// Code that knows nothing but the contract.
fn contents(loader: &dyn WeightLoader) -> BTreeMap<String, Vec<u8>> {
    let bytes = |name: &str| loader.tensor_bytes(name).unwrap().to_vec();
    loader
        .names()
        .map(|name| (name.to_owned(), bytes(name)))
        .collect()
}

#[test]
fn a_loaded_set_lends_names_and_bytes_like_the_file_itself() {
    let flat = flat();
    let path = fixture("tiny-llama/model.safetensors");
    let file = std::fs::read(&path).unwrap();
    let file = safetensors::SafeTensors::deserialize(&file).unwrap();
    let set = flat
        .load("llama", Checkpoint::open(&path).unwrap())
        .unwrap();
    let set = set.handle();
    let core = flat.registry();
    let loaded = Loaded::new(core.acquire(set).unwrap(), set).unwrap();
    assert_eq!(contents(&loaded), contents(&file));
    assert!(contents(&loaded).len() > 1);
    assert!(loaded.tensor_bytes("no.such.tensor").is_none());
    assert!(WeightLoader::tensor_bytes(&file, "no.such.tensor").is_none());
    // It holds what it lends.
    core.retire(set).unwrap();
    assert_eq!(contents(&loaded), contents(&file));
    let other = core.publish("other", bytes(4, 1)).unwrap();
    let foreign = Loaded::new(core.acquire(other).unwrap(), set);
    assert!(matches!(foreign, Err(Error::NotInLease { .. })));
}

#[test]
fn everything_travels() {
    fn travels<T: Send + Sync + 'static>() {}
    travels::<FlatRegistry>();
    travels::<weighbridge::flat::Pinned>();
    travels::<Loaded>();
    travels::<FlatHandle>();
    let one = WeightRegistry::builder().build().unwrap();
    for namespace in ["", "a\nb"] {
        assert!(FlatRegistry::within(Arc::new(registry()), namespace).is_err());
    }
    assert!(FlatRegistry::within(Arc::new(one), "model").is_ok());
}
