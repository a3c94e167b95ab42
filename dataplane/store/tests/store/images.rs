//! Images become segments, page by page.

use crate::pages::{
    DOMAIN, WIDE, day, files, folder, hash, info, noise, open, open_at, reads, text,
};
use dwcp_codec::{PAGE_BYTES, Page, PageHasher};
use dwcp_store::{Image, Kind, StoreLimits, add_image};
use std::ops::ControlFlow;
use std::path::Path;

fn image(path: &Path) -> Image<'_> {
    Image { path, domain: DOMAIN, name: "image" }
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
    let mut told = Vec::new();
    let id = add_image(&mut store, &image(&path), day(1), &mut |progress| {
        told.push(progress);
        ControlFlow::Continue(())
    })
    .unwrap();
    let view = store.list().find(|view| view.id == id).unwrap();
    assert_eq!((view.kind, view.pages, view.last_used), (Kind::Image, 39, day(1)));
    pages[7] = noise(1);
    let mut last = [0; PAGE_BYTES];
    last[..7].copy_from_slice(b"the end");
    pages.push(last);
    assert!(pages.iter().all(|page| reads(&mut store, page)));
    assert!(told.iter().all(|it| it.file_bytes == bytes.len() as u64));
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
    let mut go_on = |_| ControlFlow::Continue(());
    add_image(&mut store, &image(&path), day(0), &mut go_on).unwrap();
    let key = store.domain_key(DOMAIN).unwrap();
    let mut out = [0; PAGE_BYTES];
    assert!(store.read(DOMAIN, &PageHasher::new(&key).hash(&text(1)), &mut out));
    assert_eq!(out, text(1));
    assert!(!store.read(DOMAIN, &hash(&text(1)), &mut out));
    store.purge_all().unwrap();
    add_image(&mut store, &image(&path), day(0), &mut go_on).unwrap();
    assert_ne!(store.domain_key(DOMAIN), Some(key));
}

#[test]
fn an_image_that_is_stopped_missing_or_too_large_changes_nothing() {
    let (folder, parent) = (folder(), folder());
    let path = parent.path().join("image");
    std::fs::write(&path, (0..100).map(noise).collect::<Vec<Page>>().concat()).unwrap();
    let limits = StoreLimits { pages_max: 50, ..WIDE };
    let (mut store, _) = open_at(folder.path(), limits, day(0));
    let missing = parent.path().join("missing");
    let mut go_on = |_| ControlFlow::Continue(());
    for (path, code) in [
        (&path, "store_too_many_pages"),
        (&missing, "store_io"),
        (&parent.path().into(), "store_io"),
    ] {
        let error = add_image(&mut store, &image(path), day(0), &mut go_on).unwrap_err();
        assert_eq!(error.code(), code);
        assert!(error.cure().is_some());
    }
    let mut stop = |_| ControlFlow::Break(());
    let error = add_image(&mut store, &image(&path), day(0), &mut stop).unwrap_err();
    assert_eq!(error.code(), "store_stopped");
    assert_eq!(store.stats().segments, 0);
    assert!(files(folder.path()).is_empty());
}
