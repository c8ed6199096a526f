-- SPDX-License-Identifier: LGPL-2.1-or-later
BEGIN TRANSACTION;
CREATE TABLE "_sqlite_migrations" (
   "id" INTEGER PRIMARY KEY,
   "migration_set" TEXT,
   "name" TEXT,
   "applied_at" TEXT
);
INSERT INTO "_sqlite_migrations" VALUES(1,'svirtd','0001-registry','2026-11-24 00:00:00+00:00');
INSERT INTO "_sqlite_migrations" VALUES(2,'svirtd','0002-boot','2026-11-24 00:00:00+00:00');
INSERT INTO "_sqlite_migrations" VALUES(3,'svirtd','0003-unknown-original','2026-11-24 00:00:00+00:00');
INSERT INTO "_sqlite_migrations" VALUES(4,'svirtd','0004-ranks-ahead','2026-11-24 00:00:00+00:00');
INSERT INTO "_sqlite_migrations" VALUES(5,'svirtd','0005-quarantine-original','2026-11-24 00:00:00+00:00');
INSERT INTO "_sqlite_migrations" VALUES(6,'svirtd','0006-owner','2026-11-24 00:00:00+00:00');
INSERT INTO "_sqlite_migrations" VALUES(7,'svirtd','0007-quarantine-owner','2026-11-24 00:00:00+00:00');
INSERT INTO "_sqlite_migrations" VALUES(8,'svirtd','0008-sharing','2026-11-24 00:00:00+00:00');
INSERT INTO "_sqlite_migrations" VALUES(9,'svirtd','0009-others','2026-11-24 00:00:00+00:00');
INSERT INTO "_sqlite_migrations" VALUES(10,'svirtd','0010-trees','2026-11-24 00:00:00+00:00');
CREATE TABLE "boot" (
   "one" INTEGER PRIMARY KEY,
   "boot_id" TEXT NOT NULL
) STRICT;
INSERT INTO "boot" VALUES(1,'5f0b7f0e-6a0f-4c9b-9d53-3c8f0a1e2b77');
CREATE TABLE enrolment(rank INTEGER PRIMARY KEY REFERENCES vm(rank), unit TEXT NOT NULL UNIQUE, resources TEXT NOT NULL, options TEXT NOT NULL, since_us INTEGER NOT NULL) STRICT;
INSERT INTO "enrolment" VALUES(110043,'spare.service','[{"path": "/srv/spare.img"}]','{"goal": "isolated"}',1790000000000090);
CREATE TABLE group_returned(seq INTEGER PRIMARY KEY, category INTEGER NOT NULL UNIQUE) STRICT;
INSERT INTO "group_returned" VALUES(1,900);
CREATE TABLE hold(rank INTEGER NOT NULL REFERENCES vm(rank), number INTEGER NOT NULL, dev INTEGER NOT NULL, ino INTEGER NOT NULL, path TEXT NOT NULL, access TEXT NOT NULL, label TEXT NOT NULL, original TEXT, original_known INTEGER NOT NULL DEFAULT 1, grp TEXT NOT NULL DEFAULT '', name TEXT NOT NULL DEFAULT '', digest TEXT NOT NULL DEFAULT '', until_us INTEGER NOT NULL DEFAULT 0, at_end TEXT NOT NULL DEFAULT 'report', part_of TEXT NOT NULL DEFAULT '', recursive INTEGER NOT NULL DEFAULT 0, device INTEGER NOT NULL DEFAULT 0, PRIMARY KEY (rank, number)) STRICT, WITHOUT ROWID;
INSERT INTO "hold" VALUES(58352,0,64768,134,'/srv/new.img','exclusive','system_u:object_r:svirt_image_t:s0:c41,c342',NULL,1,'','','',0,'report','',0,0);
INSERT INTO "hold" VALUES(189221,0,5,77,'/dev/sdb','exclusive','system_u:object_r:svirt_image_t:s0:c416,c615',NULL,0,'','','',0,'report','',0,0);
INSERT INTO "hold" VALUES(201058,0,64768,131,'/srv/web.img','exclusive','system_u:object_r:svirt_image_t:s0:c397,c634','system_u:object_r:virt_image_t:s0',1,'','','',0,'report','',0,0);
INSERT INTO "hold" VALUES(201058,1,64768,140,'/srv/tools.iso','public','system_u:object_r:virt_content_t:s0','system_u:object_r:virt_image_t:s0',1,'','','',0,'report','',0,0);
INSERT INTO "hold" VALUES(201058,2,64768,190,'/srv/share','exclusive','system_u:object_r:svirt_image_t:s0:c397,c634','system_u:object_r:virt_image_t:s0',1,'','','',0,'report','',1,0);
INSERT INTO "hold" VALUES(232247,0,64768,160,'/srv/again.img','exclusive','system_u:object_r:svirt_image_t:s0:c26,c682',NULL,0,'','','',0,'report','',0,0);
INSERT INTO "hold" VALUES(251969,0,64768,132,'/srv/data base.img','exclusive','system_u:object_r:svirt_image_t:s0:c274,c710',NULL,1,'','','',0,'report','',0,0);
INSERT INTO "hold" VALUES(251969,1,64768,140,'/srv/tools.iso','public','system_u:object_r:virt_content_t:s0','system_u:object_r:virt_image_t:s0',1,'','','',0,'report','',0,0);
INSERT INTO "hold" VALUES(251969,2,9223372036854775,4611686018427387904,'/dev/mapper/grün','readonly','system_u:object_r:virt_content_t:s0:c274,c710','system_u:object_r:unlabeled_t:s0',1,'','','',0,'report','r1',0,64513);
INSERT INTO "hold" VALUES(287224,0,64768,133,'/srv/stuck.img','exclusive','system_u:object_r:svirt_image_t:s0:c321,c758','system_u:object_r:virt_image_t:s0',1,'','','',0,'report','',0,0);
CREATE TABLE member(rank INTEGER NOT NULL REFERENCES vm(rank), grp TEXT NOT NULL REFERENCES vm_group(name), PRIMARY KEY (rank, grp)) STRICT, WITHOUT ROWID;
INSERT INTO "member" VALUES(110043,'db');
CREATE TABLE "operation" (
   "id" INTEGER PRIMARY KEY,
   "kind" TEXT NOT NULL,
   "rank" INTEGER NOT NULL REFERENCES "vm"("rank"),
   "created" INTEGER NOT NULL,
   "caller_uid" INTEGER NOT NULL,
   "steps" TEXT NOT NULL,
   "started_us" INTEGER NOT NULL
, numbers TEXT NOT NULL DEFAULT '') STRICT;
INSERT INTO "operation" VALUES(3,'release',287224,0,0,'[[64768, 133, "/srv/stuck.img", "system_u:object_r:svirt_image_t:s0:c321,c758", "system_u:object_r:virt_image_t:s0"]]',1790000000000050,'');
INSERT INTO "operation" VALUES(4,'launch',58352,1,1005,'[[64768, 134, "/srv/new.img", null, "system_u:object_r:svirt_image_t:s0:c41,c342"]]',1790000000000060,'');
CREATE TABLE "pool" (
   "one" INTEGER PRIMARY KEY,
   "private" TEXT NOT NULL,
   "groups" TEXT NOT NULL,
   "reserved" TEXT NOT NULL,
   "size" INTEGER NOT NULL,
   "key" BLOB NOT NULL,
   "cursor" INTEGER NOT NULL,
   "returned" INTEGER NOT NULL,
   "quarantined" INTEGER NOT NULL
, ahead INTEGER NOT NULL DEFAULT 0) STRICT;
INSERT INTO "pool" VALUES(1,'c0.c767','c768.c1023','',2,X'000102030405060708090A0B0C0D0E0F101112131415161718191A1B1C1D1E1F',9,2,1,1);
CREATE TABLE "quarantine" (
   "id" INTEGER PRIMARY KEY,
   "rank" INTEGER NOT NULL,
   "vm_name" TEXT NOT NULL,
   "dev" INTEGER NOT NULL,
   "ino" INTEGER NOT NULL,
   "path" TEXT NOT NULL,
   "label" TEXT NOT NULL,
   "reason" TEXT NOT NULL,
   "since_us" INTEGER NOT NULL
, original TEXT, restorable INTEGER NOT NULL DEFAULT 0, owner_uid INTEGER NOT NULL DEFAULT 0) STRICT;
INSERT INTO "quarantine" VALUES(1,211361,'gone',64768,150,'/srv/gone.img','system_u:object_r:svirt_image_t:s0:c436,c650','nothing is at this path any more',1790000000000070,'system_u:object_r:virt_image_t:s0',1,1000);
INSERT INTO "quarantine" VALUES(2,211361,'gone',0,4000,'/proc/4000','system_u:system_r:svirt_t:s0:c436,c650','process 4000 still runs under the VM''s label',1790000000000071,NULL,0,1000);
CREATE TABLE "returned" (
   "seq" INTEGER PRIMARY KEY,
   "rank" INTEGER NOT NULL
) STRICT;
INSERT INTO "returned" VALUES(2,215210);
INSERT INTO "returned" VALUES(5,141742);
CREATE TABLE tree(dev INTEGER NOT NULL, ino INTEGER NOT NULL, label TEXT, inodes BLOB NOT NULL) STRICT;
INSERT INTO "tree" VALUES(64768,190,NULL,X'');
INSERT INTO "tree" VALUES(64768,190,'system_u:object_r:user_home_t:s0',X'9700000000000000');
INSERT INTO "tree" VALUES(64768,190,NULL,X'9800000000000000');
CREATE TABLE "vm" (
   "rank" INTEGER PRIMARY KEY,
   "id" TEXT NOT NULL,
   "name" TEXT NOT NULL,
   "owner_uid" INTEGER NOT NULL,
   "state" TEXT NOT NULL,
   "reason" TEXT NOT NULL,
   "goal" TEXT NOT NULL,
   "uuid" TEXT NOT NULL,
   "categories" TEXT NOT NULL,
   "process_context" TEXT NOT NULL,
   "image_context" TEXT NOT NULL,
   "unit" TEXT NOT NULL,
   "main_pid" INTEGER NOT NULL,
   "runtime_dir" TEXT NOT NULL,
   "persistent" INTEGER NOT NULL,
   "lifetime" TEXT NOT NULL,
   "caller" TEXT NOT NULL,
   "created_us" INTEGER NOT NULL
, groups TEXT NOT NULL DEFAULT '', labeller TEXT NOT NULL DEFAULT '', enrolled TEXT NOT NULL DEFAULT '') STRICT;
INSERT INTO "vm" VALUES(58352,'00000000000000a5','new',1005,'labelled','','isolated','','c41,c342','system_u:system_r:svirt_t:s0:c41,c342','system_u:object_r:svirt_image_t:s0:c41,c342','svirt-new.service',0,'/run/svirtd/vm/00000000000000a5',0,'release','',1790000000000005,'','','');
INSERT INTO "vm" VALUES(110043,'00000000000000a2','spare',0,'reserved','','isolated','','c297,c469','system_u:system_r:svirt_t:s0:c297,c469','system_u:object_r:svirt_image_t:s0:c297,c469','',0,'',1,'release','',1790000000000002,'','','spare.service');
INSERT INTO "vm" VALUES(189221,'00000000000000a3','guest',1003,'labelled','','isolated','','c416,c615','system_u:system_r:svirt_t:s0:c416,c615','system_u:object_r:svirt_image_t:s0:c416,c615','',0,'',0,'caller','0123456789abcdef0123456789abcdef:1.77',1790000000000003,'','','');
INSERT INTO "vm" VALUES(201058,'00000000000000a0','web',0,'running','','isolated','','c397,c634','system_u:system_r:svirt_t:s0:c397,c634','system_u:object_r:svirt_image_t:s0:c397,c634','svirt-web.service',4711,'/run/svirtd/vm/00000000000000a0',0,'release','',1790000000000000,'','','');
INSERT INTO "vm" VALUES(232247,'00000000000000a6','again',0,'running','','isolated','','c26,c682','system_u:system_r:svirt_t:s0:c26,c682','system_u:object_r:svirt_image_t:s0:c26,c682','svirt-again.service',815,'/run/svirtd/vm/00000000000000a6',0,'release','',1790000000000080,'','libvirt','');
INSERT INTO "vm" VALUES(251969,'00000000000000a1','data base 7',1001,'labelled','','isolated','0f8fad5b-d9cd-469f-a165-70867728950e','c274,c710','system_u:system_r:svirt_t:s0:c274,c710','system_u:object_r:svirt_image_t:s0:c274,c710','',0,'',1,'release','',1790000000000001,'','','');
INSERT INTO "vm" VALUES(287224,'00000000000000a4','stuck',0,'failed','/srv/stuck.img: its label cannot be read: Input/output error','isolated','','c321,c758','system_u:system_r:svirt_t:s0:c321,c758','system_u:object_r:svirt_image_t:s0:c321,c758','svirt-stuck.service',0,'/run/svirtd/vm/00000000000000a4',0,'release','',1790000000000004,'','','');
CREATE TABLE vm_grant(grp TEXT NOT NULL REFERENCES vm_group(name), vm_name TEXT NOT NULL, owner_uid INTEGER NOT NULL, until_us INTEGER NOT NULL, at_end TEXT NOT NULL, since_us INTEGER NOT NULL, told INTEGER NOT NULL DEFAULT 0, PRIMARY KEY (grp, vm_name)) STRICT, WITHOUT ROWID;
INSERT INTO "vm_grant" VALUES('db','data base 7',1001,1990000000000000,'stop',1790000000000092,0);
CREATE TABLE vm_group(name TEXT NOT NULL PRIMARY KEY, category INTEGER NOT NULL UNIQUE, owner_uid INTEGER NOT NULL, created_us INTEGER NOT NULL, writers TEXT NOT NULL DEFAULT 'all', namespace TEXT NOT NULL DEFAULT '') STRICT;
INSERT INTO "vm_group" VALUES('db',801,0,1790000000000090,'all','');
INSERT INTO "vm_group" VALUES('red',802,1001,1790000000000091,'one','/run/netns/red');
CREATE TABLE wall_clear(id INTEGER PRIMARY KEY, wall TEXT NOT NULL, subject TEXT NOT NULL, uid INTEGER NOT NULL, cleared INTEGER NOT NULL, at_us INTEGER NOT NULL) STRICT;
INSERT INTO "wall_clear" VALUES(1,'banks','00000000000000a2',0,1,1790000000000094);
CREATE TABLE wall_history(wall TEXT NOT NULL, subject TEXT NOT NULL, grp TEXT NOT NULL, vm_name TEXT NOT NULL, since_us INTEGER NOT NULL, PRIMARY KEY (subject, wall, grp)) STRICT, WITHOUT ROWID;
INSERT INTO "wall_history" VALUES('banks','00000000000000a1','db','data base 7',1790000000000093);
CREATE UNIQUE INDEX "idx__sqlite_migrations_migration_set_name"
    ON "_sqlite_migrations" ("migration_set", "name");
CREATE UNIQUE INDEX "idx_returned_rank"
    ON "returned" ("rank");
CREATE INDEX "idx_quarantine_rank"
    ON "quarantine" ("rank");
CREATE UNIQUE INDEX "idx_vm_name"
    ON "vm" ("name");
CREATE INDEX vm_active ON vm(state) WHERE state <> 'reserved';
CREATE INDEX vm_caller ON vm(caller) WHERE caller <> '';
CREATE INDEX hold_object ON hold(dev, ino);
CREATE INDEX vm_owner ON vm(owner_uid) WHERE owner_uid <> 0;
CREATE INDEX quarantine_owner ON quarantine(owner_uid) WHERE owner_uid <> 0;
CREATE INDEX vm_group_owner ON vm_group(owner_uid) WHERE owner_uid <> 0;
CREATE INDEX member_group ON member(grp);
CREATE INDEX hold_group ON hold(grp) WHERE grp <> '';
CREATE INDEX hold_until ON hold(until_us) WHERE until_us <> 0;
CREATE INDEX hold_device ON hold(device) WHERE device <> 0;
CREATE INDEX tree_root ON tree(dev, ino);
CREATE INDEX hold_tree ON hold(dev) WHERE recursive <> 0;
COMMIT;
