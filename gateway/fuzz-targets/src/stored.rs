//! The stored state: files of any bytes, and files of a gateway that were changed since.

use fuzzing::{Input, mutate};
use gateway_model::{Model, Source, Update, stored};

use super::updates::World;

/// Updates of one file at most.
const MAX_UPDATES: usize = 12;
/// Bytes at the front that are changed more often: the version.
const HEAD: usize = 32;

/// Reads the input as a file, or as updates that are stored and changes of their file.
pub fn stored(data: &[u8]) {
    let mut input = Input::new(data);
    if input.flag() {
        read(input.rest());
        return;
    }
    let changes = input.below(4);
    let (mut file, model) = written(&mut input);
    if changes == 0 {
        let found = read(&file);
        assert_eq!(found, Some((model, None)), "as it was stored");
        return;
    }
    for _ in 0..changes {
        mutate(&mut input, &mut file, HEAD);
    }
    read(&file);
}

/// The file of a gateway that applied updates, and its state.
fn written(input: &mut Input<'_>) -> (Vec<u8>, Model) {
    let mut world = World::default();
    let mut file = Vec::new();
    let whole = |model: &Model| {
        let mut file = Vec::new();
        stored::write_state(&mut file, &model.snapshot()).expect("memory");
        file
    };
    for _ in 0..MAX_UPDATES {
        let before = (world.model.source(), world.model.revision());
        let update = world.step(input);
        let is_same = before == (world.model.source(), world.model.revision());
        match update {
            _ if is_same && before.0 == Source::Applied => {}
            Some(Update::Delta(delta)) if before.0 == Source::Applied => {
                stored::write_delta(&mut file, &delta).expect("memory");
            }
            Some(Update::Snapshot(snapshot)) => {
                file.clear();
                stored::write_state(&mut file, &snapshot).expect("memory");
            }
            Some(Update::Delta(_)) | None => file = whole(&world.model),
        }
        if input.is_empty() {
            break;
        }
    }
    if world.model.source() == Source::None {
        // Nothing was put in force, and nothing is stored.
        file = whole(&world.model);
        let (model, _) = stored::read(&String::from_utf8_lossy(&file)).expect("a state");
        return (file, model);
    }
    (file, world.model)
}

/// Reads a file. A state that it has is written and read again the same.
fn read(file: &[u8]) -> Option<(Model, Option<String>)> {
    let text = String::from_utf8_lossy(file);
    if stored::other_version(&text).is_some() {
        return None;
    }
    let (model, problem) = stored::read(&text).ok()?;
    let mut again = Vec::new();
    stored::write_state(&mut again, &model.snapshot()).expect("memory");
    let again = String::from_utf8(again).expect("JSON");
    assert_eq!(stored::other_version(&again), None);
    assert_eq!(stored::read(&again), Ok((model.clone(), None)));
    Some((model, problem))
}
