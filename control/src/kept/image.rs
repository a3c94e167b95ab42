//! Images that operators add, on the store's thread: a turn at a time, so that no guest waits for
//! one.

use super::{AddJob, Added, KeptError, Known, Note};
use crate::api::Reply;
use dwcp_store::{DomainId, Image, ImageReader, Kind, SegmentId, SegmentView, Store};
use std::time::SystemTime;

/// Steps of 64 KiB in one turn: 4 MiB, some 20 ms.
const STEPS_PER_TURN: usize = 64;

/// An image that is being added.
#[derive(Debug)]
pub(super) struct Adding {
    pub(super) name: String,
    trust_domain: String,
    reader: ImageReader,
    pub(super) reply: Reply,
}

impl Adding {
    /// Begins to add an image; whoever asked gets the reply back with what is wrong.
    pub(super) fn begin(store: &Store, job: AddJob) -> Result<Self, (KeptError, Reply)> {
        let AddJob { file, name, trust_domain, reply } = job;
        let begin = || {
            if !file.metadata().is_ok_and(|it| it.is_file()) {
                return Err(KeptError::NotAFile);
            }
            let note = Note { trust_domain: Some(trust_domain.clone()), before: None, list: None };
            // An image shares pages with guests by its label alone, so it has a domain of its own.
            let domain = DomainId(crate::peer::random());
            let image = Image { file, domain, name: name.clone(), note: note.to_bytes() };
            Ok(ImageReader::begin(store, image)?)
        };
        match begin() {
            Ok(reader) => Ok(Self { name, trust_domain, reader, reply }),
            Err(error) => Err((error, reply)),
        }
    }

    /// Reads on; false at the end of the file.
    pub(super) fn turn(&mut self) -> Result<bool, KeptError> {
        for _ in 0..STEPS_PER_TURN {
            if !self.reader.step()? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Keeps what was read, in place of what there was of the same name and label.
    pub(super) fn land(self, store: &mut Store) -> (Result<Added, KeptError>, Reply) {
        let Self { name, trust_domain, reader, reply } = self;
        let (read_bytes, pages) = (reader.progress().read_bytes, reader.progress().pages);
        let same = |it: &SegmentView| {
            let label = Note::of(it).and_then(|note| note.trust_domain);
            it.kind == Kind::Image && label.as_ref() == Some(&trust_domain)
        };
        let older: Vec<SegmentId> =
            store.named(&name).filter(same).map(|segment| segment.id).collect();
        let landed = reader.land(store, SystemTime::now());
        let added = landed.map(|segment| {
            super::thread::remove_older(store, &name, older);
            let bytes = store.list().find(|it| it.id == segment).map_or(0, |it| it.bytes);
            let trust_domain = Some(trust_domain);
            let known =
                Known { name, kind: Kind::Image, trust_domain, before: None, segment, pages };
            Added { known, read_bytes, bytes }
        });
        (added.map_err(KeptError::Store), reply)
    }
}
