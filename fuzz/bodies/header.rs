//! Headers of safetensors files.
//!
//! The input is one byte, then a header; the byte says how many bytes of data are behind it. With 255
//! the rest is a whole file instead, whatever its length says. Our verdict is compared with that of the
//! safetensors crate, what is accepted with what the crate reads; a file on disk is judged like one in
//! memory, and limits are exact.

use safetensors::SafeTensors;
use weighbridge::Error;
use weighbridge::plan::PlannedTensor;
use weighbridge::source::{Checkpoint, InMemory, OpenOptions, Source};

use super::ground::{contents, file_of, folder, pattern, refusal, stage_and_leave, write};

const WHOLE: u8 = 255;

/// What we refuse on purpose and the crate does not, by words of the refusal.
const STRICTER: [&str; 7] = [
    "is there twice",
    "control characters",
    "1 to 512 bytes",
    "1 to 64 bytes",
    "dimensions or more",
    "more than 32 deep",
    "__metadata__",
];

pub fn run(data: &[u8]) {
    let Some((&first, rest)) = data.split_first() else {
        return;
    };
    let file = match first {
        WHOLE => rest.to_vec(),
        len => file_of(rest, &pattern(len.into())),
    };
    let theirs = SafeTensors::deserialize(&file);
    let ours = InMemory::from_safetensors(&file);
    on_disk(&file, &ours);
    match ours {
        Err(error) => {
            let text = refusal(&error);
            let stricter = STRICTER.iter().any(|words| text.contains(words));
            assert!(stricter || theirs.is_err(), "the crate accepts it: {text}");
        }
        Ok(source) => {
            let unknown = |tensor: &PlannedTensor| tensor.dtype().dtype().is_none();
            let ours_only =
                source.plan().tensors().iter().any(unknown) || file.get(8) != Some(&b'{');
            match theirs {
                Ok(theirs) => same(&source, &theirs),
                Err(error) => assert!(ours_only, "the crate refuses it: {error}"),
            }
            limits(&file, source.plan().tensors().len());
            accepted(&file, source);
        }
    }
}

/// What the crate reads and what we read is the same.
fn same(source: &InMemory, theirs: &SafeTensors<'_>) {
    assert_eq!(source.plan().tensors().len(), theirs.len());
    for (tensor, (name, bytes)) in source.plan().tensors().iter().zip(contents(source)) {
        let their = theirs.tensor(&name).expect("both have it");
        assert_eq!(tensor.dtype().dtype(), Some(their.dtype()));
        assert_eq!(tensor.shape(), their.shape());
        assert_eq!(bytes, their.data(), "of {name}");
    }
}

/// All of the data is somebody's.
fn accepted(file: &[u8], source: InMemory) {
    let data = file.len() as u64 - 8 - header_len(file);
    let tensors = source.plan().tensors().iter();
    let sum: u64 = tensors.map(PlannedTensor::byte_len).sum();
    assert_eq!(sum, data, "data that is nobody's, or twice somebody's");
    stage_and_leave(source);
}

fn header_len(file: &[u8]) -> u64 {
    u64::from_le_bytes(file[..8].try_into().expect("eight bytes"))
}

/// The limits that a caller may set are exact.
fn limits(file: &[u8], tensors: usize) {
    let header = header_len(file);
    let within = |options: OpenOptions| InMemory::from_safetensors_with(file, &options);
    let options = OpenOptions::new;
    within(options().max_tensors(tensors).max_header_bytes(header))
        .expect("just within the limits");
    if let Some(fewer) = tensors.checked_sub(1) {
        let refused = within(options().max_tensors(fewer)).expect_err("more tensors than allowed");
        assert!(refusal(&refused).contains("more than"), "{refused}");
    }
    let refused = within(options().max_header_bytes(header - 1)).expect_err("a longer header");
    assert!(refusal(&refused).contains("at most"), "{refused}");
}

/// A file is judged as the same bytes in memory are.
fn on_disk(file: &[u8], ours: &Result<InMemory, Error>) {
    let dir = folder();
    let path = dir.path().join("model.safetensors");
    write(&path, file);
    match (Checkpoint::open(&path), ours) {
        (Ok(opened), Ok(ours)) => {
            assert_eq!(opened.plan().tensors(), ours.plan().tensors());
            assert_eq!(contents(&opened), contents(ours));
        }
        (Err(on_disk), Err(_)) => drop(refusal(&on_disk)),
        (opened, ours) => panic!("{opened:?} on disk, {ours:?} in memory"),
    }
}
