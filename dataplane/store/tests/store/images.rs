//! Images become segments, page by page.

use crate::pages::{
    DOMAIN, WIDE, day, files, folder, hash, info, noise, open, open_at, reads, text,
};
use dwcp_codec::{PAGE_BYTES, Page, PageHasher};
use dwcp_store::{Image, ImageReader, Kind, SegmentId, Store, StoreError, StoreLimits};
use std::fs::File;
use std::path::Path;

fn begin(store: &Store, path: &Path) -> Result<ImageReader, StoreError> {
    let (file, name, note) = (File::open(path).unwrap(), "image".to_owned(), b"note".to_vec());
    ImageReader::begin(store, Image { file, domain: DOMAIN, name, note })
}

fn add(store: &mut Store, path: &Path) -> Result<SegmentId, StoreError> {
    let mut image = begin(store, path)?;
    while image.step()? {}
    image.land(store, day(0))
}

#[test]
fn an_image_is_read_to_its_last_byte_and_zeros_are_skipped() {
    let (folder, parent) = (folder(), folder());
    let path = parent.path().join("image");
    let mut pages: Vec<Page> = (0..40).map(noise).collect();
    pages[7] = [0; PAGE_BYTES];
    pages[20] = pages[3];
    let mut bytes = pages.concat();
    bytes.extend(b"the end");
    std::fs::write(&path, &bytes).unwrap();
    let (mut store, _) = open(folder.path());
    // The domain has a key, which the image's pages are hashed with.
    let writer = store.begin(info("guest")).unwrap();
    store.land(writer, day(0)).unwrap();
    let mut image = begin(&store, &path).unwrap();
    let mut told = vec![image.progress()];
    while image.step().unwrap() {
        told.push(image.progress());
    }
    told.push(image.progress());
    let id = image.land(&mut store, day(1)).unwrap();
    let view = store.list().find(|view| view.id == id).unwrap();
    assert_eq!((view.kind, view.pages, view.last_used), (Kind::Image, 39, day(1)));
    assert_eq!(view.note, b"note");
    let mut in_order = pages.clone();
    in_order.remove(20);
    in_order.remove(7);
    let mut blocks = (0..).map_while(|number| store.block(id, number).map(<[Page]>::to_vec));
    assert!(blocks.by_ref().flatten().take(38).eq(in_order), "as they lie in the file");
    assert!(blocks.next().is_none());
    pages[7] = noise(1);
    let mut last = [0; PAGE_BYTES];
    last[..7].copy_from_slice(b"the end");
    pages.push(last);
    assert!(pages.iter().all(|page| reads(&mut store, page)));
    assert!(told.is_sorted_by_key(|it| (it.read_bytes, it.pages)));
    let last = told.last().unwrap();
    assert_eq!((last.read_bytes, last.pages), (bytes.len() as u64, 39));
}

#[test]
fn a_new_domain_gets_a_random_key() {
    let (folder, parent) = (folder(), folder());
    let path = parent.path().join("image");
    std::fs::write(&path, text(1)).unwrap();
    let (mut store, _) = open(folder.path());
    add(&mut store, &path).unwrap();
    let key = store.domain_key(DOMAIN).unwrap();
    let mut out = [0; PAGE_BYTES];
    assert!(store.read(DOMAIN, &PageHasher::new(&key).hash(&text(1)), &mut out));
    assert_eq!(out, text(1));
    assert!(!store.read(DOMAIN, &hash(&text(1)), &mut out));
    store.purge_all().unwrap();
    add(&mut store, &path).unwrap();
    assert_ne!(store.domain_key(DOMAIN), Some(key));
}

#[test]
fn an_image_that_is_stopped_unreadable_or_too_large_changes_nothing() {
    let (folder, parent) = (folder(), folder());
    let path = parent.path().join("image");
    std::fs::write(&path, (0..100).map(noise).collect::<Vec<Page>>().concat()).unwrap();
    let limits = StoreLimits { pages_max: 50, ..WIDE };
    let (mut store, _) = open_at(folder.path(), limits, day(0));
    for (path, code) in [(path.as_path(), "store_too_many_pages"), (parent.path(), "store_io")] {
        let error = add(&mut store, path).unwrap_err();
        assert_eq!(error.code(), code);
        assert!(error.cure().is_some());
    }
    let mut image = begin(&store, &path).unwrap();
    assert!(image.step().unwrap());
    drop(image);
    assert_eq!(store.stats().segments, 0);
    assert!(files(folder.path()).is_empty());
}
